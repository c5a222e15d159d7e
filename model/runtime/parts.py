"""The part of the network that is compiled, as a function of tensors alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.faster_rcnn import FasterRCNN
from model.ops import Shapes, flatten_maps


def level_shapes(model: FasterRCNN, canvas: tuple[int, int]) -> Shapes:
    """(Hl, Wl) of every map that the backbone makes of a canvas, whose sides are multiples of the stride."""
    strides = model.backbone.body.strides
    shapes = [(canvas[0] // stride, canvas[1] // stride) for stride in strides]  # type: ignore[union-attr]
    if model.backbone.fpn is not None and model.backbone.fpn.pool:
        height, width = shapes[-1]
        shapes.append((-(-height // 2), -(-width // 2)))
    return tuple(shapes)


class DensePart(nn.Module):
    """Backbone, pyramid and RPN head, the maps written straight into the table that regions are pooled from."""

    def __init__(self, model: FasterRCNN, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Float32 pixels [B, 3, H, W] to the table [sum of B*Hl*Wl, C], logits and offsets float32."""
        dense = self.model.dense(pixels.to(self.dtype))
        return flatten_maps(dense.maps), dense.logits.float(), dense.deltas.float()
