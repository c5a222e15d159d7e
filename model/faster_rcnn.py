"""Faster R-CNN (arXiv 1506.01497, Figure 2): a backbone, a region proposal network and a Fast R-CNN detector.

This module holds the weights. ``model.runtime.forward`` runs it for inference, ``model.training.losses`` for training.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.config import DetectorConfig
from model.roi_align import map_shapes
from model.roi_head import RoIHead
from model.rpn import RPN, Candidates
from model.structures import ImageBatch
from model.transfer import upload


class RPNOutput(NamedTuple):
    """The output of the backbone and the RPN's head for a batch: logit and offsets of every anchor.

    maps: the feature maps, L of [B, C, Hl, Wl], finest first. logits: [B, N], objectness of every anchor.
    deltas: [B, N, 4], offsets of every anchor. Anchors are level-major, then row, column, anchor of the cell.
    """

    maps: list[Tensor]
    logits: Tensor
    deltas: Tensor

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Return (Hl, Wl) of each level's map."""
        return map_shapes(self.maps)


class FasterRCNN(nn.Module):
    """Backbone, RPN and RoI head. Attribute names are those of torchvision's state dicts."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone, channels = build_backbone(config)
        self.rpn = RPN(channels, config.anchors, config.rpn)
        self.roi_heads = RoIHead(channels, config.num_classes, config.roi_head)

    def run_convolutions(self, pixels: Tensor) -> RPNOutput:
        """Run the backbone and the RPN's head on normalised pixels [B, 3, H, W], in the weights' dtype."""
        maps = self.backbone(pixels)
        return RPNOutput(maps, *self.rpn.head(maps))

    def select_candidates(self, output: RPNOutput, batch: ImageBatch) -> Candidates:
        """Select the best anchors of each level by objectness and decode them; NMS comes after."""
        device = output.logits.device
        anchors, counts = self.rpn.grid_anchors(batch.canvas, output.shapes, device)
        scales = None
        if self.config.rpn.scale_min_size:
            scales = upload(batch.sizes[:, 0] / batch.original_sizes[:, 0], torch.float32, device)
        return self.rpn.select_candidates(output.logits, output.deltas, anchors, counts, batch.device_sizes, scales)
