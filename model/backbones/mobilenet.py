"""MobileNetV3-Large (Howard et al., arXiv 1905.02244) as torchvision's detectors cut it.

State-dict keys equal those under ``backbone.body`` there: ``0`` the stem, ``1`` to ``15`` the bottlenecks, ``16``
the last 1x1 convolution. torchvision returns stages 13 (the first of stride 32) and 16 (also of stride 32): two maps
of one size and scale, of which the rule of pyramid levels only ever chooses the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from model.backbones.spec import BackboneSpec, Norm


class Row(NamedTuple):
    """One row of arXiv 1905.02244, Table 1: kernel, expansion, output channels, SE, h-swish, stride."""

    kernel: int
    expanded: int
    outputs: int
    excite: bool
    hard_swish: bool
    stride: int


# arXiv 1905.02244, Table 1 (MobileNetV3-Large), the 15 "bneck" rows.
ROWS = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
STEM_CHANNELS = 16
LAST_CHANNELS = 960
# torchvision backbone_utils._mobilenet_extractor: the last two of the stages that begin with a stride, or end the net.
RETURNED = (13, 16)


def _divisible_by_8(channels: float) -> int:
    """Round to the nearest multiple of 8 that is not more than a tenth smaller (Sandler et al.'s rule for channels)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _conv_norm(
    inputs: int, outputs: int, kernel: int, norm: Norm, activation: nn.Module | None, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a convolution with its norm and, unless None, its activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm(outputs), *([] if activation is None else [activation]))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all channels (arXiv 1905.02244, section 5.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _divisible_by_8(channels / 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, H, W] to the same shape."""
        mean = x.mean((2, 3), keepdim=True)
        gate: Tensor = self.gate(self.fc2(self.relu(self.fc1(mean))))
        return x * gate


class InvertedResidual(nn.Module):
    """Widen with a 1x1, convolve by channel, squeeze and excite, narrow with a 1x1; a shortcut where shapes agree."""

    def __init__(self, inputs: int, row: Row, norm: Norm) -> None:
        super().__init__()
        activation = nn.Hardswish if row.hard_swish else nn.ReLU
        self.block = nn.Sequential()
        if row.expanded != inputs:
            self.block.append(_conv_norm(inputs, row.expanded, 1, norm, activation(inplace=True)))
        depthwise = _conv_norm(
            row.expanded, row.expanded, row.kernel, norm, activation(inplace=True), row.stride, groups=row.expanded
        )
        self.block.append(depthwise)
        if row.excite:
            self.block.append(SqueezeExcite(row.expanded))
        self.block.append(_conv_norm(row.expanded, row.outputs, 1, norm, None))
        self.shortcut = row.stride == 1 and inputs == row.outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, row.outputs, H / stride, W / stride]."""
        y: Tensor = self.block(x)
        return x + y if self.shortcut else y


class MobileNetV3Large(nn.Module):
    """The seventeen stages of MobileNetV3-Large, named by number, with ``norm(channels)`` after each convolution.

    Weights are random (He et al., fan-out) until loaded. channels, strides: of the maps that ``forward`` returns.
    """

    channels: tuple[int, ...] = (160, 960)
    strides: tuple[int, ...] = (32, 32)

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        stages: list[nn.Module] = [_conv_norm(3, STEM_CHANNELS, 3, norm, nn.Hardswish(inplace=True), stride=2)]
        inputs = STEM_CHANNELS
        for row in ROWS:
            stages.append(InvertedResidual(inputs, row, norm))
            inputs = row.outputs
        stages.append(_conv_norm(inputs, LAST_CHANNELS, 1, norm, nn.Hardswish(inplace=True)))
        for number, stage in enumerate(stages):
            self.add_module(str(number), stage)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map float [B, 3, H, W] to two maps, [B, 160, H / 32, W / 32] and [B, 960, H / 32, W / 32]."""
        maps = []
        for number, stage in enumerate(self.children()):
            pixels = stage(pixels)
            if number in RETURNED:
                maps.append(pixels)
        return maps


def from_imagenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's ``mobilenet_v3_large`` to a detector's keys, without its classifier."""
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    return {f"backbone.body.{key.removeprefix('features.')}": value for key, value in features.items()}


SPEC = BackboneSpec(
    build=MobileNetV3Large,
    key="16.0.weight",
    first_conv="0.0",
    frozen=tuple(f"{stage}." for stage in range(7)),  # torchvision trains its last three stages: from 7 on
    imagenet_source="torchvision's mobilenet_v3_large",
    imagenet_key="features.16.0.weight",
    from_imagenet=from_imagenet,
)
