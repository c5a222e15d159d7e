"""Labelled images as training and evaluation use them, whichever format they were read from.

    G  labelled boxes of an image

Boxes are float32 ``[x1, y1, x2, y2]`` in the image's pixels, continuous coordinates, as in ``model.structures``.
Class ids run from 1; 0 is background. ``ignore`` marks boxes that are neither trained on nor counted: COCO's crowds,
VOC's difficult objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from model.structures import ImageArray

# What Pillow raises for files that are not whole images.
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class DataError(ValueError):
    """A data set cannot be used; the message names the files and boxes, ten at most."""

    def __init__(self, problems: Sequence[str], shown: int = 10) -> None:
        self.problems = tuple(problems)
        lines = [*problems[:shown]]
        if len(problems) > shown:
            lines.append(f"... and {len(problems) - shown} more")
        super().__init__(lines[0] if len(lines) == 1 else f"{len(problems)} problems:\n  " + "\n  ".join(lines))


@dataclass(frozen=True, eq=False)
class Sample:
    """The labels of one image; arrays are read-only.

    path: the image's file. image_id: the JSON's id, or the XML's file name without its ending.
    width, height: pixels, in the orientation that the image is shown in (EXIF applied).
    boxes: float32 [G, 4] xyxy, inside the image. class_ids: int64 [G], from 1. ignore: bool [G].
    areas: float32 [G], square pixels, the annotation's own where it has one (COCO's is of the mask).
    """

    path: Path
    image_id: int | str
    width: int
    height: int
    boxes: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    ignore: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for array in (self.boxes, self.class_ids, self.ignore, self.areas):
            array.setflags(write=False)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images; works as a torch map-style data set of ``(image, Sample)``.

    classes: names by class id, ``__background__`` first.
    skipped: the boxes that ``on_bad_box="skip"`` left out, one line for each.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    _decoded: Mapping[Path, ImageArray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[ImageArray, Sample]:
        return self.load(index), self.samples[index]

    def load(self, index: int) -> ImageArray:
        """Decode an image to uint8 [height, width, 3] RGB as it is shown.

        EXIF orientation is applied, transparency is put over white, and 16 bits become 8. Raises
        ``DataError`` where it cannot be decoded.
        """
        sample = self.samples[index]
        cached = self._decoded.get(sample.path)
        if cached is not None:
            return cached
        try:
            with Image.open(sample.path) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
        except _DECODING_ERRORS as error:
            raise DataError([_decoding_problem(sample.path, error)]) from error

    def check_images(self) -> None:
        """Decode every image once, as coarsely as its format allows: 0.3 ms for a JPEG of voc20.

        Reading a data set looks at headers alone, and a truncated file has a good one. Raises ``DataError`` that names
        all images which cannot be decoded.
        """
        problems = []
        for sample in self.samples:
            try:
                with Image.open(sample.path) as image:
                    image.draft("RGB", (1, 1))
                    image.load()
            except _DECODING_ERRORS as error:
                problems.append(_decoding_problem(sample.path, error))
        if problems:
            raise DataError(problems)

    def decoded(self) -> Dataset:
        """Return the data set with its images in memory: 3 bytes a pixel, for small sets that are read often."""
        return replace(self, _decoded={sample.path: self.load(i) for i, sample in enumerate(self.samples)})

    def subset(self, indices: Iterable[int]) -> Dataset:
        """Return the data set of these samples alone, in this order."""
        return replace(self, samples=tuple(self.samples[i] for i in indices))


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return the data set without a random ``fraction`` of its images, and that fraction; both keep its order.

    The seed determines which images are drawn. Raises ``ValueError`` where either would be empty.
    """
    count = round(len(dataset) * fraction)
    if not 0 < count < len(dataset):
        raise ValueError(f"a fraction of {fraction} of {len(dataset)} images leaves one side empty")
    order = np.random.default_rng(seed).permutation(len(dataset))
    part, rest = sorted(order[:count].tolist()), sorted(order[count:].tolist())
    return dataset.subset(rest), dataset.subset(part)


def _decoding_problem(path: Path, error: Exception) -> str:
    return f"{path}: the image cannot be decoded ({error})"


def _to_rgb(image: Image.Image) -> ImageArray:
    """Convert to RGB as the service does, so that training sees the pixels that will be served."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"))
