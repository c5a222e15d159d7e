"""An image with its labels, as augmentation changes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data import Dataset


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image and its G boxes.

    pixels: uint8 [3, h, w] RGB.
    boxes: float32 [G, 4] xyxy in these pixels. class_ids: int64 [G], from 1. ignore: bool [G].
    """

    pixels: Tensor
    boxes: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    ignore: npt.NDArray[np.bool_]


def load_labelled_image(dataset: Dataset, index: int) -> LabelledImage:
    """Decode sample ``index``; raise ``DataError`` where it cannot be decoded."""
    sample = dataset.samples[index]
    pixels = torch.from_numpy(dataset.load(index)).permute(2, 0, 1)
    return LabelledImage(pixels, sample.boxes, sample.class_ids, sample.ignore)
