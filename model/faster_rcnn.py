"""Faster R-CNN whole: the paper's Figure 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.config import DetectorConfig
from model.roi_head import RoIHead, stack_regions
from model.rpn import RPN, Candidates
from model.structures import ImageBatch, Proposals
from model.transfer import upload


class Dense(NamedTuple):
    """What the convolutions make of a batch: the shared maps, finest first, and the RPN head's answer for every anchor.

    maps: L of [B, C, Hl, Wl]. logits: [B, N]. deltas: [B, N, 4].
    """

    maps: list[Tensor]
    logits: Tensor
    deltas: Tensor

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(Hl, Wl) of each level's map."""
        return tuple((int(level.shape[2]), int(level.shape[3])) for level in self.maps)


class FasterRCNN(nn.Module):
    """Backbone, RPN and Fast R-CNN detector. Attribute names are those of torchvision's state dicts."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone, channels = build_backbone(config)
        self.rpn = RPN(channels, config.anchors, config.rpn)
        self.roi_heads = RoIHead(channels, config.num_classes, config.roi_head)

    def dense(self, pixels: Tensor) -> Dense:
        """The convolutional part: normalised pixels [B, 3, H, W] to maps, logits and offsets."""
        maps = self.backbone(pixels)
        return Dense(maps, *self.rpn.head(maps))

    def candidates(self, dense: Dense, batch: ImageBatch) -> Candidates:
        """The RPN's best anchors of each level, decoded, before NMS."""
        anchors, counts = self.rpn.grid(batch.canvas, dense.shapes, dense.logits.device)
        scales = None
        if self.config.rpn.scale_min_size:
            scales = upload(batch.sizes[:, 0] / batch.original_sizes[:, 0], torch.float32, dense.logits.device)
        return self.rpn.candidates(dense.logits, dense.deltas, anchors, counts, batch.device_sizes, scales)

    @torch.no_grad()
    def forward(self, batch: ImageBatch) -> tuple[list[Proposals], list[tuple[Tensor, Tensor]]]:
        """Each picture's proposals (canvas pixels), and the head's logits [R, classes] and offsets [R, classes, 4]."""
        dense = self.dense(batch.pixels)
        proposals = self.rpn.propose(self.candidates(dense, batch))
        logits, offsets = self.roi_heads(dense.maps, stack_regions([p.boxes for p in proposals]))
        return proposals, split_rows(logits, offsets, [len(p) for p in proposals])


def split_rows(logits: Tensor, offsets: Tensor, counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The rows of a batch's regions, by picture."""
    return list(zip(logits.split(list(counts)), offsets.split(list(counts)), strict=True))
