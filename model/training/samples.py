"""Labelled pictures as training and evaluation see them, wherever they were read from.

    G  labelled boxes of a picture

Boxes are float32 ``[x1, y1, x2, y2]`` in the picture's pixels, continuous coordinates, as in ``model.structures``.
Class ids run from 1; 0 is background. ``ignore`` marks what neither teaches nor counts: COCO's crowds, VOC's difficult
objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

BACKGROUND = "__background__"

Pixels = npt.NDArray[np.uint8]

# What Pillow raises for files that are no whole picture.
_UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class DataError(ValueError):
    """A data set cannot be trained on; the text names the files and boxes, ten at most."""

    def __init__(self, problems: Sequence[str], shown: int = 10) -> None:
        self.problems = tuple(problems)
        lines = [*problems[:shown]]
        if len(problems) > shown:
            lines.append(f"... and {len(problems) - shown} more")
        super().__init__(lines[0] if len(lines) == 1 else f"{len(problems)} problems:\n  " + "\n  ".join(lines))


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture's labels; arrays are read-only.

    path: the picture's file. image_id: the json's id, or the xml's stem.
    width, height: pixels, in the orientation that the picture is shown in (EXIF applied).
    boxes: float32 [G, 4] xyxy, inside the picture. class_ids: int64 [G], from 1. ignore: bool [G].
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
    """Labelled pictures; works as a torch map-style data set of ``(picture, Sample)``.

    classes: names by class id, ``__background__`` first.
    skipped: what ``on_bad_box="skip"`` left out, one line a box.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    _decoded: Mapping[Path, Pixels] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Pixels, Sample]:
        return self.load(index), self.samples[index]

    def load(self, index: int) -> Pixels:
        """The picture as uint8 [height, width, 3] RGB, as it is shown: EXIF applied, alpha over white, 16 bits as 8.

        Raises DataError where it does not decode.
        """
        sample = self.samples[index]
        kept = self._decoded.get(sample.path)
        if kept is not None:
            return kept
        try:
            with Image.open(sample.path) as picture:
                return _rgb(ImageOps.exif_transpose(picture))
        except _UNDECODABLE as error:
            raise DataError([_undecodable(sample.path, error)]) from error

    def check_pictures(self) -> None:
        """Decode every picture once, as coarsely as its format allows: 0.3 ms for a JPEG of voc20.

        The loaders read headers alone, and a file that stops half way has a good one. Raises DataError naming all.
        """
        problems = []
        for sample in self.samples:
            try:
                with Image.open(sample.path) as picture:
                    picture.draft("RGB", (1, 1))
                    picture.load()
            except _UNDECODABLE as error:
                problems.append(_undecodable(sample.path, error))
        if problems:
            raise DataError(problems)

    def decoded(self) -> Dataset:
        """The same with all pictures decoded in memory: 3 bytes a pixel, for sets that are small or read often."""
        return replace(self, _decoded={s.path: self.load(i) for i, s in enumerate(self.samples)})

    def subset(self, indices: Iterable[int]) -> Dataset:
        """These samples alone, in the order given."""
        return replace(self, samples=tuple(self.samples[i] for i in indices))


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Cut a part of ``fraction`` off: (the rest, the part), each in the data set's order, the same for the same seed.

    Raises ValueError where either would be empty.
    """
    count = round(len(dataset) * fraction)
    if not 0 < count < len(dataset):
        raise ValueError(f"a fraction of {fraction} of {len(dataset)} pictures leaves one side empty")
    order = np.random.default_rng(seed).permutation(len(dataset))
    part, rest = sorted(order[:count].tolist()), sorted(order[count:].tolist())
    return dataset.subset(rest), dataset.subset(part)


def _undecodable(path: Path, error: Exception) -> str:
    return f"{path}: the picture does not decode ({error})"


def _rgb(picture: Image.Image) -> Pixels:
    """As the service does, so that training sees what serving will."""
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(picture.convert("RGB"))
