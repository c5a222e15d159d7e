"""Check images and boxes while a data set is read, so that training does not fail on them later; build its samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from model.data.samples import DataError, Dataset, Sample
from model.structures import Box

OnBadBox = Literal["error", "skip"]

_LOG = logging.getLogger(__name__)
# Annotation tools round outwards, so a box may exceed the border by a pixel; beyond that something is wrong.
_OVERHANG = 1.0
_EXIF_ORIENTATION = 0x0112


class ImageLabels:
    """Labels of one image, while they are read.

    stated: width and height as the annotation has them. width, height: as the file has them, 0 until it was read.
    rows: (box xyxy in the image's pixels, class id, ignore, area) of each box that is kept.
    """

    def __init__(self, path: Path, size: Mapping[str, Any]) -> None:
        self.path = path
        self.stated = (size.get("width"), size.get("height"))
        self.width = self.height = 0
        self.rows: list[tuple[Box, int, bool, float]] = []


class LabelChecks:
    """Gather all problems of a data set, so that one run names them all.

    on_bad_box: ``error`` makes a bad box a problem, ``skip`` leaves it out and notes it in ``skipped``.
    """

    def __init__(self, on_bad_box: OnBadBox) -> None:
        self.problems: list[str] = []
        self.skipped: list[str] = []
        self.bad_box = self.skipped.append if on_bad_box == "skip" else self.problems.append

    def check_image(self, labels: ImageLabels) -> None:
        """Read the image's size from its header, without decoding it, and compare it with the annotation's."""
        try:
            with Image.open(labels.path) as image:
                width, height = image.size
                # Orientations 5 to 8 are shown rotated by a quarter turn.
                if image.getexif().get(_EXIF_ORIENTATION, 1) >= 5:
                    width, height = height, width
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            missing = isinstance(error, FileNotFoundError)
            self.problems.append(f"{labels.path}: {'missing' if missing else f'not an image ({error})'}")
            return
        labels.width, labels.height = width, height
        stated = tuple(str(value) for value in labels.stated)
        if stated not in {("None", "None"), ("0", "0"), (str(width), str(height))}:
            self.problems.append(
                f"{labels.path}: the image is shown {width}x{height}, its annotation says {stated[0]}x{stated[1]}"
            )

    def add_box(
        self,
        labels: ImageLabels,
        name: str,
        box: Box,
        class_id: int,
        ignore: bool,
        area: float | None = None,
    ) -> None:
        """Add a box (xyxy, image's pixels) to its image's labels, or note what is wrong with it under ``name``."""
        x1, y1, x2, y2 = box
        text = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
        if not all(math.isfinite(value) for value in box):
            self.bad_box(f"{name}: {text} is not finite")
        elif x2 <= x1 or y2 <= y1:
            self.bad_box(f"{name}: {text} has no area")
        elif labels.width == 0:
            return  # the image itself is a problem already
        elif min(x1, y1) < -_OVERHANG or x2 > labels.width + _OVERHANG or y2 > labels.height + _OVERHANG:
            self.bad_box(f"{name}: {text} leaves its image of {labels.width}x{labels.height}")
        else:
            inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(labels.width)), min(y2, float(labels.height)))
            if inside[2] <= inside[0] or inside[3] <= inside[1]:
                self.bad_box(f"{name}: {text} has no area inside its image")
                return
            labels.rows.append((inside, class_id, ignore, (x2 - x1) * (y2 - y1) if area is None else area))

    def build_dataset(
        self, source: Path, images: Iterable[tuple[int | str, ImageLabels]], classes: tuple[str, ...]
    ) -> Dataset:
        """Build the data set of these (image id, labels); raise ``DataError`` with all problems where there are any."""
        samples = tuple(_build_sample(image_id, labels) for image_id, labels in images)
        if not self.problems and not any(len(sample.boxes) for sample in samples):
            self.problems.append(f"{source}: no box in {len(samples)} images" if samples else f"{source}: no images")
        if self.problems:
            raise DataError(self.problems)
        if self.skipped:
            _LOG.warning("left out %d bad boxes: %s", len(self.skipped), "; ".join(self.skipped[:10]))
        return Dataset(samples, classes, tuple(self.skipped))


def _build_sample(image_id: int | str, labels: ImageLabels) -> Sample:
    boxes, class_ids, ignore, areas = zip(*labels.rows, strict=True) if labels.rows else ((), (), (), ())
    return Sample(
        path=labels.path,
        image_id=image_id,
        width=labels.width,
        height=labels.height,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        class_ids=np.array(class_ids, np.int64),
        ignore=np.array(ignore, np.bool_),
        areas=np.array(areas, np.float32),
    )
