"""Labelled images, read from COCO JSON or VOC XML and checked: what training and evaluation run on.

samples.py   Sample and Dataset, in which form every format arrives; decoding; splitting
labels.py    checks of images and boxes, and the samples that are built from them
coco.py      COCO JSON
voc.py       VOC XML
folder.py    a folder in any of the known layouts
"""

from model.data.coco import load_coco
from model.data.folder import load_dataset
from model.data.labels import OnBadBox
from model.data.samples import DataError, Dataset, Sample, split
from model.data.voc import load_voc

__all__ = ["DataError", "Dataset", "OnBadBox", "Sample", "load_coco", "load_dataset", "load_voc", "split"]
