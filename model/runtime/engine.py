"""What runs the network's two heavy parts: the dense one, and the heads on the regions.

Everything between and after them is arithmetic in float32 that lies in ``model.rpn`` and ``model.roi_head``, the same
for every engine. An engine keeps nothing from one batch to the next, so that one can take another's place between two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from model.faster_rcnn import Dense, FasterRCNN


class Features(NamedTuple):
    """The shared maps: L of [B, C, Hl, Wl], finest first, and the table that they are parts of, where there is one.

    table: [sum of B*Hl*Wl, C] as ``ops.flatten_maps`` makes it.
    """

    maps: list[Tensor]
    table: Tensor | None = None


class Engine(Protocol):
    """One way to run the network."""

    name: str

    def dense(self, pixels: Tensor, asking: Sequence[int]) -> tuple[Features, Dense | None]:
        """Backbone and pyramid of float32 pixels [B, 3, H, W], and the RPN head's answer for the rows ``asking``.

        None in place of the latter where no row asks. Its rows are counted as in ``asking``.
        """
        ...

    def heads(self, features: Features, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, classes] and offsets [R, classes, 4] of regions float32 [R, 5]: picture, box on the canvas."""
        ...


class EagerEngine:
    """The modules as they are, in the model's precision."""

    name = "eager"

    def __init__(self, model: FasterRCNN, dtype: torch.dtype) -> None:
        self.model = model
        self.dtype = dtype

    def dense(self, pixels: Tensor, asking: Sequence[int]) -> tuple[Features, Dense | None]:
        """See ``Engine``. The RPN's head runs on the rows that ask alone."""
        pixels = pixels.to(self.dtype)
        if len(asking) == len(pixels):
            dense = self.model.dense(pixels)
            return Features(dense.maps), dense
        maps = self.model.backbone(pixels)
        if not asking:
            return Features(maps), None
        theirs = [level[list(asking)] for level in maps]
        return Features(maps), Dense(theirs, *self.model.rpn.head(theirs))

    def heads(self, features: Features, regions: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Engine``."""
        logits, offsets = self.model.roi_heads(features.maps, regions)
        return logits, offsets
