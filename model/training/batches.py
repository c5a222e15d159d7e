"""Batches of augmented images on a fixed canvas.

An image's random generator follows from (seed, epoch, step, position) alone: a run that resumes gets the batches that
it would have got, and processes that share a batch get their parts of it.

    H, W  canvas height and width      h, w  height and width of an image's content on the canvas, h <= H, w <= W
    G     boxes of an image            B     images in a batch
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from model.data import Dataset
from model.training.augment import (
    AugmentConfig,
    LabelledImage,
    augment_image,
    compose_mosaic,
    load_labelled_image,
    make_negative_image,
)


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """Images on one canvas with their labels.

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


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of one epoch, by step; a torch map-style data set whose items are whole batches.

    Landscape and square images go onto ``canvas`` (H, W), portraits onto (W, H): there are only two shapes. Each
    group's last batch is filled up with that group's first images.

    filler: RGB outside the content; the mean, so that it is near zero once normalised.
    rank, world: of ``world`` processes that share each batch this is number ``rank``, and gets every ``world``-th image
        of it from position ``rank`` on.
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
        object.__setattr__(self, "_plan", self._draw_plan())

    def __len__(self) -> int:
        return len(self.plan)

    @property
    def plan(self) -> npt.NDArray[np.int64]:
        """Return int64 [steps, B], the samples of each step."""
        return cast("npt.NDArray[np.int64]", self.__dict__["_plan"])

    def __getitem__(self, step: int) -> TrainBatch:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        canvas = self._canvas_of(int(self.plan[step][0]))
        indices = self.plan[step][self.rank :: self.world]
        images = []
        for row, index in enumerate(indices):
            position = self.rank + row * self.world
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch, step, position]))
            image = load_labelled_image(self.dataset, int(index))
            if self.config.negative and rng.random() < self.config.negative:
                images.append(make_negative_image(image, canvas, rng))
            elif self.config.mosaic and rng.random() < self.config.mosaic:
                others = [load_labelled_image(self.dataset, int(i)) for i in rng.integers(len(self.dataset), size=3)]
                images.append(compose_mosaic([image, *others], canvas, self.config, rng))
            else:
                images.append(augment_image(image, canvas, self.config, rng))
        return collate(images, canvas, self.filler, indices)

    def _canvas_of(self, index: int) -> tuple[int, int]:
        """Return the canvas (H, W) in the orientation of sample ``index``."""
        sample = self.dataset.samples[index]
        return self.canvas if sample.width >= sample.height else (self.canvas[1], self.canvas[0])

    def _draw_plan(self) -> npt.NDArray[np.int64]:
        """Draw which samples each step has: int64 [steps, B]."""
        # The spawn key makes this stream of random numbers differ from that of every image.
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, self.epoch], spawn_key=(1,)))
        wide = np.array([sample.width >= sample.height for sample in self.dataset.samples])
        batches = []
        for members in (np.flatnonzero(wide), np.flatnonzero(~wide)):
            if len(members):
                steps = -(-len(members) // self.batch_size)
                batches.append(np.resize(rng.permutation(members), (steps, self.batch_size)))
        return rng.permutation(np.concatenate(batches)).astype(np.int64)


def collate(
    images: Sequence[LabelledImage],
    canvas: tuple[int, int],
    filler: tuple[int, int, int] = (127, 127, 127),
    indices: npt.NDArray[np.int64] | None = None,
) -> TrainBatch:
    """Put images at the top left of their canvases (H, W). indices: which samples they are; None counts from 0."""
    pixels = torch.empty((len(images), 3, *canvas), dtype=torch.uint8, memory_format=torch.channels_last)
    pixels[:] = torch.tensor(filler, dtype=torch.uint8)[:, None, None]
    for row, image in zip(pixels, images, strict=True):
        row[:, : image.pixels.shape[1], : image.pixels.shape[2]] = image.pixels
    return TrainBatch(
        pixels=pixels,
        sizes=torch.tensor([image.pixels.shape[1:] for image in images], dtype=torch.int64),
        boxes=tuple(torch.from_numpy(image.boxes.copy()) for image in images),
        class_ids=tuple(torch.from_numpy(image.class_ids.copy()) for image in images),
        ignore=tuple(torch.from_numpy(image.ignore.copy()) for image in images),
        indices=torch.from_numpy(np.arange(len(images)) if indices is None else indices.copy()),
    )


def prefetch(batches: Batches, start: int = 0, workers: int = 1, ahead: int = 4) -> Iterator[TrainBatch]:
    """Yield the epoch's batches from step ``start`` on, made ahead of time in worker processes (0: here, on demand).

    An image takes under 2 ms to make where a step takes a hundred times that, so one worker is enough. A process rather
    than a thread, because it has a GIL of its own, and its OpenMP team has one thread and is not shared with training.
    """
    loader: DataLoader[TrainBatch] = DataLoader(
        cast("torch.utils.data.Dataset[TrainBatch]", batches),
        batch_size=None,
        sampler=range(start, len(batches)),
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
    )
    return iter(loader)
