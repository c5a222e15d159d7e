"""Backbones: pixels to feature maps. ``build_backbone`` makes the one that a configuration names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from model.backbones.efficientnet_lite import efficientnet_lite0
from model.backbones.fpn import FeaturePyramid
from model.backbones.mobilenet import mobilenet_v3_large
from model.backbones.resnet import resnet50
from model.backbones.vgg import vgg16
from model.config import DetectorConfig


class Backbone(nn.Module):
    """A body and, where the configuration has one, a pyramid over its maps: pixels to the shared feature maps."""

    def __init__(self, body: nn.Module, fpn: FeaturePyramid | None) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels [B, 3, H, W] to maps [B, C, Hl, Wl], finest first."""
        maps: list[Tensor] = self.body(pixels)
        return maps if self.fpn is None else self.fpn(maps)


def _norm(config: DetectorConfig) -> Callable[[int], nn.Module]:
    # TV v2 fine-tuned its norms; everyone else's are ImageNet's, frozen.
    if config.fpn_norm:
        return lambda channels: nn.BatchNorm2d(channels, eps=config.norm_eps)
    return lambda channels: FrozenBatchNorm2d(channels, eps=config.norm_eps)


def build_backbone(config: DetectorConfig) -> tuple[Backbone, int]:
    """``config``'s backbone with fresh weights, and the channels of its maps; ``ValueError`` for an unknown name."""
    norm = _norm(config)
    if config.backbone == "efficientnet_lite0":
        body: nn.Module = efficientnet_lite0()
    elif config.backbone == "resnet50":
        body = resnet50(norm)
    elif config.backbone == "mobilenet_v3_large":
        body = mobilenet_v3_large(norm)
    elif config.backbone == "vgg16":
        body = vgg16()
    else:
        raise ValueError(f"No backbone {config.backbone!r}: efficientnet_lite0, resnet50, mobilenet_v3_large or vgg16.")
    channels: tuple[int, ...] = body.channels  # type: ignore[assignment]
    if not config.fpn_channels:
        return Backbone(body, None), channels[-1]
    fpn = FeaturePyramid(channels, config.fpn_channels, norm if config.fpn_norm else None, pool=config.fpn_pool)
    return Backbone(body, fpn), config.fpn_channels
