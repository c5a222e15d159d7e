"""Read a data set from a folder, in whichever known layout it has."""

from __future__ import annotations

from pathlib import Path

from model.data.coco import load_coco
from model.data.labels import OnBadBox
from model.data.samples import DataError, Dataset
from model.data.voc import load_voc


def load_dataset(spec: str | Path, split: str, *, on_bad_box: OnBadBox = "error") -> Dataset:
    """Read split ``split`` of the folder ``spec``, which has one of three layouts.

    - ``<split>.json`` with ``images/<split>/`` (or ``<split>/``, or ``images/``);
    - COCO's ``annotations/instances_<split>*.json`` with a folder of the name's ending, as ``train2017/``;
    - VOC's ``ImageSets/Main/<split>.txt`` with ``Annotations/`` and ``JPEGImages/``.

    Raises ``DataError``.
    """
    root = Path(spec)
    if not root.is_dir():
        raise DataError([f"{root}: no such folder"])
    if (root / f"{split}.json").is_file():
        folders = (root / "images" / split, root / split, root / "images")
        images = next((folder for folder in folders if folder.is_dir()), folders[0])
        return load_coco(root / f"{split}.json", images, on_bad_box=on_bad_box)
    if annotations := sorted((root / "annotations").glob(f"instances_{split}*.json")):
        images = root / annotations[0].stem.removeprefix("instances_")
        return load_coco(annotations[0], images, on_bad_box=on_bad_box)
    if (root / "ImageSets" / "Main" / f"{split}.txt").is_file():
        return load_voc(root, split, on_bad_box=on_bad_box)
    raise DataError(
        [
            f"{root}: no split {split!r}; looked for {split}.json, annotations/instances_{split}*.json "
            f"and ImageSets/Main/{split}.txt"
        ]
    )
