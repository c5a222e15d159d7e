"""ResNet-50 to C5 (He et al., arXiv 1512.03385), the stride in the 3x3 convolution as torchvision's ("v1.5").

State-dict keys equal torchvision's ``resnet50`` without its ``fc``: conv1, bn1, layer1 ... layer4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.spec import BackboneSpec, Norm

# arXiv 1512.03385, Table 1, the 50-layer column: (blocks, width of the 3x3 convolutions) of conv2_x to conv5_x.
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
# A bottleneck ends four times as wide as its 3x3 convolution (Table 1 again).
EXPANSION = 4


class Bottleneck(nn.Module):
    """Narrow with a 1x1 convolution, apply a 3x3 at the stride, widen with a 1x1, and add the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, 4 * width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)).add_(shortcut), inplace=True)


class ResNet50(nn.Module):
    """The four stages of ResNet-50, with ``norm(channels)`` after each convolution; weights random until loaded.

    channels, strides: of the maps that ``forward`` returns, finest first.
    """

    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    strides: tuple[int, ...] = (4, 8, 16, 32)

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        inputs = 64
        for stage, (blocks, width) in enumerate(STAGES, start=1):
            # The pooling before conv2_x has halved the map already.
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            layer = nn.Sequential()
            for stride in strides:
                layer.append(Bottleneck(inputs, width, stride, norm))
                inputs = EXPANSION * width
            self.add_module(f"layer{stage}", layer)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map float [B, 3, H, W] to C2 to C5, four maps [B, channels[l], H / strides[l], W / strides[l]]."""
        x = F.relu(self.bn1(self.conv1(pixels)), inplace=True)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        maps = []
        for stage in range(1, len(STAGES) + 1):
            x = cast(Tensor, self.get_submodule(f"layer{stage}")(x))
            maps.append(x)
        return maps


def from_imagenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's ``resnet50`` to a detector's keys, without its classifier."""
    return {f"backbone.body.{key}": value for key, value in state.items() if not key.startswith("fc.")}


SPEC = BackboneSpec(
    build=ResNet50,
    key="layer4.0.conv1.weight",
    first_conv="conv1",
    frozen=("conv1.", "bn1.", "layer1."),
    imagenet_source="torchvision's resnet50",
    imagenet_key="layer4.2.conv3.weight",
    from_imagenet=from_imagenet,
)
