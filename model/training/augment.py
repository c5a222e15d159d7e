"""Training pictures: flipped, scaled, cropped and recoloured onto a fixed canvas, and put together into batches.

Everything random comes from an explicit generator, and a picture's generator from (seed, epoch, step, position) alone:
a run that resumes sees the batches that it would have seen, and processes that share a batch see their parts of it.

    H, W  canvas height and width      h, w  height and width of a picture's content on the canvas, h <= H, w <= W
    G     boxes of a picture           B     pictures in a batch
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from model.training.colour import ColourConfig, recolour
from model.training.negatives import negative
from model.training.samples import Dataset


@dataclass(frozen=True)
class AugmentConfig:
    """How much to change pictures; each chance is a probability.

    flip: chance of a left-right flip.
    scale: smallest and largest size, log-uniform, against the size at which the picture just fits its canvas.
    stretch: the width is further multiplied by up to this either way, the height divided; 1 keeps the aspect.
    colour: of light and colour.
    mosaic: chance of four pictures in one.
    negative: chance of a picture of nothing instead (``negatives.py``).
    min_visible: a box whose centre is cropped away stays if at least this share of it is visible.
    min_side: canvas pixels; a box with a smaller visible side is ignored, neither object nor background.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.7, 1.4)
    stretch: float = 1.0
    colour: ColourConfig = field(default_factory=ColourConfig)
    mosaic: float = 0.0
    negative: float = 0.0
    min_visible: float = 0.3
    min_side: float = 2.0


# Only fits the picture onto its canvas: for the last epochs, and for tests.
PLAIN = AugmentConfig(flip=0.0, scale=(1.0, 1.0), colour=ColourConfig(chance=0.0))


@dataclass(frozen=True, eq=False)
class TrainPicture:
    """A picture with its labels.

    pixels: uint8 [3, h, w] RGB.
    boxes: float32 [G, 4] xyxy in these pixels. class_ids: int64 [G], from 1. ignore: bool [G].
    """

    pixels: Tensor
    boxes: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    ignore: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """Pictures on one canvas with their labels.

    pixels: uint8 [B, 3, H, W] RGB, channels last in memory, content at the top left, filler elsewhere.
    sizes: int64 [B, 2], content height and width.
    boxes: B of float32 [G, 4] xyxy, canvas frame. class_ids: B of int64 [G], from 1. ignore: B of bool [G].
    indices: int64 [B], which samples of the data set.
    """

    pixels: Tensor
    sizes: Tensor
    boxes: tuple[Tensor, ...]
    class_ids: tuple[Tensor, ...]
    ignore: tuple[Tensor, ...]
    indices: Tensor

    def __len__(self) -> int:
        return int(self.pixels.shape[0])


def to_picture(dataset: Dataset, index: int) -> TrainPicture:
    """Sample ``index``, decoded and not yet changed."""
    sample = dataset.samples[index]
    pixels = torch.from_numpy(dataset.load(index)).permute(2, 0, 1)
    return TrainPicture(pixels, sample.boxes, sample.class_ids, sample.ignore)


def augment(
    picture: TrainPicture, canvas: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> TrainPicture:
    """Scale and crop to the canvas (H, W), flip and recolour; content may be smaller than the canvas."""
    placed = place(picture, canvas, config, rng)
    if rng.random() < config.flip:
        placed = flip(placed)
    return _recoloured(placed, config, rng)


def place(
    picture: TrainPicture, canvas: tuple[int, int], config: AugmentConfig, rng: np.random.Generator, cover: bool = False
) -> TrainPicture:
    """Resize by a random scale, and crop at random where the result is larger than the canvas (H, W).

    cover: scale 1 is where the picture just covers the canvas instead of just fitting it, and it never gets smaller.
    """
    height, width = picture.pixels.shape[-2:]
    low, high = np.log(config.scale)
    scale = float(np.exp(rng.uniform(low, high)))
    stretch = float(np.exp(rng.uniform(-1, 1) * np.log(config.stretch)))
    fits = (canvas[0] / height, canvas[1] / width)
    scale = max(fits) * max(scale, 1.0) if cover else min(fits) * scale
    scale_y, scale_x = scale / stretch, scale * stretch
    if cover:
        scale_y, scale_x = max(scale_y, fits[0]), max(scale_x, fits[1])
    # The crop comes first, in whole source pixels, so that only what is kept gets resized.
    top, crop_h, new_h = _window(height, scale_y, canvas[0], rng)
    left, crop_w, new_w = _window(width, scale_x, canvas[1], rng)
    return crop_resize(picture, (top, left, crop_h, crop_w), (new_h, new_w), config.min_visible, config.min_side)


def crop_resize(
    picture: TrainPicture,
    window: tuple[int, int, int, int],
    size: tuple[int, int],
    min_visible: float,
    min_side: float,
) -> TrainPicture:
    """Cut out ``window`` (top, left, height, width; picture's pixels) and resize it to ``size`` (h, w), antialiased.

    A box stays if its centre is inside or at least ``min_visible`` of it is, and its sides then keep ``min_side``. A
    visible rest of any other box becomes ignored: it is not the object any more, nor is it background.
    """
    top, left, crop_h, crop_w = window
    pixels = picture.pixels[:, top : top + crop_h, left : left + crop_w]
    if (crop_h, crop_w) != size:
        # On uint8 this is a native integer path: 0.2 ms for a 384-pixel picture where Pillow's resize takes 0.6.
        pixels = functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]

    ratio = np.array([size[1] / crop_w, size[0] / crop_h] * 2, np.float32)
    moved = (picture.boxes - np.array([left, top, left, top], np.float32)) * ratio
    limit = np.array([size[1], size[0]] * 2, np.float32)
    clipped = np.clip(moved, 0, limit)
    sides = clipped[:, 2:] - clipped[:, :2]
    centre = (moved[:, :2] + moved[:, 2:]) / 2
    centre_inside = ((centre >= 0) & (centre < limit[:2])).all(axis=1)
    share = sides.prod(axis=1) / (moved[:, 2:] - moved[:, :2]).prod(axis=1)
    whole = (centre_inside | (share >= min_visible)) & (sides >= min_side).all(axis=1)
    seen = (sides > 0.5).all(axis=1)  # less than half a pixel shows nothing
    keep = whole | seen
    return TrainPicture(pixels, clipped[keep], picture.class_ids[keep], (picture.ignore | ~whole)[keep])


def flip(picture: TrainPicture) -> TrainPicture:
    """Left becomes right."""
    width = picture.pixels.shape[-1]
    boxes = picture.boxes.copy()
    boxes[:, 0], boxes[:, 2] = width - picture.boxes[:, 2], width - picture.boxes[:, 0]
    return TrainPicture(picture.pixels.flip(-1), boxes, picture.class_ids, picture.ignore)


def mosaic(
    pictures: Sequence[TrainPicture], canvas: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> TrainPicture:
    """Four pictures around a random point of the canvas (H, W), each covering its quarter."""
    height, width = canvas
    middle_y, middle_x = (round(side * rng.uniform(0.35, 0.65)) for side in canvas)
    pixels = torch.empty((3, height, width), dtype=torch.uint8)
    parts = []
    for i, picture in enumerate(pictures[:4]):
        top, bottom = (0, middle_y) if i < 2 else (middle_y, height)
        left, right = (0, middle_x) if i % 2 == 0 else (middle_x, width)
        part = place(picture, (bottom - top, right - left), config, rng, cover=True)
        if rng.random() < config.flip:
            part = flip(part)
        pixels[:, top:bottom, left:right] = part.pixels
        parts.append(
            (part.boxes + np.array([left, top, left, top], np.float32), part.class_ids, part.ignore),
        )
    boxes, class_ids, ignore = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _recoloured(TrainPicture(pixels, boxes, class_ids, ignore), config, rng)


@dataclass(frozen=True, eq=False)
class Batches:
    """One epoch of batches, by step; a torch map-style data set whose items are whole batches.

    Landscape and square pictures go onto ``canvas`` (H, W), portraits onto (W, H): two shapes are all there are.
    Each group's last batch is filled up with that group's first pictures.

    filler: RGB outside the content; the mean, so that it is near zero once normalised.
    rank, world: of ``world`` processes that share each batch this is number ``rank``, and gets every ``world``-th
        picture of it from position ``rank`` on.
    """

    dataset: Dataset
    canvas: tuple[int, int] = (288, 384)
    batch_size: int = 8
    config: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    epoch: int = 0
    filler: tuple[int, int, int] = (127, 127, 127)
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "_plan", self._order())

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def plan(self) -> npt.NDArray[np.int64]:
        """int64 [steps, B], the samples of each step."""
        return cast("npt.NDArray[np.int64]", self.__dict__["_plan"])

    def __getitem__(self, step: int) -> TrainBatch:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        canvas = self._canvas_of(int(self.plan[step][0]))
        indices = self.plan[step][self.rank :: self.world]
        pictures = []
        for row, index in enumerate(indices):
            position = self.rank + row * self.world
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, step, position]))
            one = to_picture(self.dataset, int(index))
            if self.config.negative and rng.random() < self.config.negative:
                pictures.append(_nothing(one, canvas, rng))
            elif self.config.mosaic and rng.random() < self.config.mosaic:
                others = [to_picture(self.dataset, int(i)) for i in rng.integers(len(self.dataset), size=3)]
                pictures.append(mosaic([one, *others], canvas, self.config, rng))
            else:
                pictures.append(augment(one, canvas, self.config, rng))
        return collate(pictures, canvas, self.filler, indices)

    def _canvas_of(self, index: int) -> tuple[int, int]:
        sample = self.dataset.samples[index]
        return self.canvas if sample.width >= sample.height else (self.canvas[1], self.canvas[0])

    def _order(self) -> npt.NDArray[np.int64]:
        # A stream of its own: spawn keys beyond any step.
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch], spawn_key=(1,)))
        wide = np.array([sample.width >= sample.height for sample in self.dataset.samples])
        batches = []
        for members in (np.flatnonzero(wide), np.flatnonzero(~wide)):
            if len(members):
                steps = -(-len(members) // self.batch_size)
                batches.append(np.resize(rng.permutation(members), (steps, self.batch_size)))
        return rng.permutation(np.concatenate(batches)).astype(np.int64)


def collate(
    pictures: Sequence[TrainPicture],
    canvas: tuple[int, int],
    filler: tuple[int, int, int] = (127, 127, 127),
    indices: npt.NDArray[np.int64] | None = None,
) -> TrainBatch:
    """Put pictures at the top left of their canvases (H, W)."""
    pixels = torch.empty((len(pictures), 3, *canvas), dtype=torch.uint8, memory_format=torch.channels_last)
    pixels[:] = torch.tensor(filler, dtype=torch.uint8)[:, None, None]
    for row, picture in zip(pixels, pictures, strict=True):
        row[:, : picture.pixels.shape[1], : picture.pixels.shape[2]] = picture.pixels
    return TrainBatch(
        pixels=pixels,
        sizes=torch.tensor([picture.pixels.shape[1:] for picture in pictures], dtype=torch.int64),
        boxes=tuple(torch.from_numpy(picture.boxes.copy()) for picture in pictures),
        class_ids=tuple(torch.from_numpy(picture.class_ids.copy()) for picture in pictures),
        ignore=tuple(torch.from_numpy(picture.ignore.copy()) for picture in pictures),
        indices=torch.from_numpy(np.arange(len(pictures)) if indices is None else indices.copy()),
    )


def prefetch(batches: Batches, start: int = 0, workers: int = 1, ahead: int = 4) -> Iterator[TrainBatch]:
    """The epoch's batches from step ``start`` on, made ahead of time by worker processes (0: made here, when asked).

    A picture costs under 2 ms to make where a step costs a hundred times that, so one worker is plenty. A process and
    not a thread: it holds its own GIL, and its OpenMP team is of one thread and apart from the training's.
    """
    loader: DataLoader[TrainBatch] = DataLoader(
        cast("torch.utils.data.Dataset[TrainBatch]", batches),
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
    )
    return iter(loader)


def _nothing(picture: TrainPicture, canvas: tuple[int, int], rng: np.random.Generator) -> TrainPicture:
    pixels = negative(picture.pixels, picture.boxes, canvas, rng)
    return TrainPicture(pixels, picture.boxes[:0], picture.class_ids[:0], picture.ignore[:0])


def _recoloured(picture: TrainPicture, config: AugmentConfig, rng: np.random.Generator) -> TrainPicture:
    return replace(picture, pixels=recolour(picture.pixels, config.colour, rng))


def _window(side: int, scale: float, limit: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """Along one axis: (first source pixel, source pixels, canvas pixels) for a side resized by ``scale``."""
    draw = rng.random()  # drawn always, so that the stream does not depend on the picture's size
    new = max(1, round(side * scale))
    if new <= limit:
        return 0, side, new
    crop = min(side, max(1, round(limit / scale)))
    return int(draw * (side - crop + 1)), crop, limit
