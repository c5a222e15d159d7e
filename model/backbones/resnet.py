"""ResNet-50 to C5 (He et al., arXiv 1512.03385), the stride in the 3x3 convolution as torchvision's ("v1.5").

State-dict keys equal torchvision's ``resnet50`` without its ``fc``: conv1, bn1, layer1 ... layer4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]

# arXiv 1512.03385, Table 1, the 50-layer column: (blocks, width of the 3x3 convolutions) of conv2_x to conv5_x.
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
# A bottleneck ends four times as wide as its 3x3 convolution (Table 1 again).
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1 to narrow, 3x3 at the stride, 1x1 to widen, added to the shortcut."""

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
        """[B, inputs, H, W] -> [B, 4 * width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)).add_(shortcut), inplace=True)


class ResNet50(nn.Module):
    """The four stages of ResNet-50.

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
            # conv2_x follows the pooling, which has halved the map already.
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
        """C2 to C5 of a batch: float [B, 3, H, W] -> four maps [B, channels[l], H / strides[l], W / strides[l]]."""
        x = F.relu(self.bn1(self.conv1(pixels)), inplace=True)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        maps = []
        for stage in range(1, len(STAGES) + 1):
            x = cast(Tensor, self.get_submodule(f"layer{stage}")(x))
            maps.append(x)
        return maps


def resnet50(norm: Norm) -> ResNet50:
    """ResNet-50 with ``norm(channels)`` after each convolution; weights random (He et al., fan-out) until loaded."""
    return ResNet50(norm)
