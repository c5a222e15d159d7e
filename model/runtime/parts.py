"""The two parts of the network that are compiled, as functions of tensors alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.faster_rcnn import FasterRCNN
from model.ops import Shapes, flatten_maps
from model.roi_head import BoxHead


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


class HeadsPart(nn.Module):
    """Pooling from the table, box head and predictor."""

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.heads = model.roi_heads
        self.flat: nn.Module | None = None
        if isinstance(self.heads.box_head, BoxHead):
            self.flat = _channels_last(self.heads.box_head, self.heads.config.resolution)

    def forward(self, table: Tensor, layout: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Table [rows, C], its layout int64 [L, 3], regions float32 [R, 5] to logits and offsets float32."""
        pooled = self.heads.pool_table(table, layout, regions)
        if self.flat is None:
            logits, offsets = self.heads.classify(pooled.permute(0, 3, 1, 2))
        else:
            logits, offsets = self.heads.box_predictor(self.flat(pooled))
            offsets = offsets.reshape(-1, self.heads.num_classes, 4)
        return logits.float(), offsets.float()


def _channels_last(head: BoxHead, resolution: int) -> nn.Module:
    """``head`` for pooled regions [R, r, r, C], as pooling makes them: its first layer's columns in that order."""
    layers: list[nn.Module] = []
    for layer in head:
        layers += layer if isinstance(layer, nn.Sequential) else [layer]  # fc6 may be two
    first = next(layer for layer in layers if isinstance(layer, nn.Linear))
    weight = first.weight.detach().unflatten(1, (-1, resolution, resolution)).permute(0, 2, 3, 1).flatten(1)
    other = nn.Linear(first.in_features, first.out_features, bias=first.bias is not None, device="meta")
    other.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if first.bias is not None:
        other.bias = nn.Parameter(first.bias.detach(), requires_grad=False)
    return nn.Sequential(*(other if layer is first else layer for layer in layers))
