"""A body and the pyramid over its maps, built from a configuration."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from model.backbones.fpn import FeaturePyramid
from model.backbones.spec import Norm
from model.backbones.table import BACKBONES
from model.config import DetectorConfig


class Backbone(nn.Module):
    """Turn pixels into the feature maps that the RPN and the RoI head share: a body and, optionally, a pyramid."""

    def __init__(self, body: nn.Module, fpn: FeaturePyramid | None) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map normalised pixels float [B, 3, H, W] to feature maps [B, C, Hl, Wl], finest first."""
        maps: list[Tensor] = self.body(pixels)
        return maps if self.fpn is None else self.fpn(maps)


def build_backbone(config: DetectorConfig) -> tuple[Backbone, int]:
    """Build ``config``'s backbone with random weights; return it and the channels of its maps.

    Raises ``ValueError`` for a name that is not in the table of backbones.
    """
    if config.backbone not in BACKBONES:
        raise ValueError(f"No backbone {config.backbone!r}: one of {', '.join(BACKBONES)}.")
    norm = _norm(config)
    body = BACKBONES[config.backbone].build(norm)
    channels: tuple[int, ...] = body.channels  # type: ignore[assignment]
    if not config.fpn_channels:
        return Backbone(body, None), channels[-1]
    fpn = FeaturePyramid(channels, config.fpn_channels, norm if config.fpn_norm else None, pool=config.fpn_pool)
    return Backbone(body, fpn), config.fpn_channels


def _norm(config: DetectorConfig) -> Norm:
    """Return what makes the norm after each convolution, for a number of channels."""
    # torchvision trained fasterrcnn_resnet50_fpn_v2 with learning norms; other checkpoints keep ImageNet's statistics.
    if config.fpn_norm:
        return lambda channels: nn.BatchNorm2d(channels, eps=config.norm_eps)
    return lambda channels: FrozenBatchNorm2d(channels, eps=config.norm_eps)
