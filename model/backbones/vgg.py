"""VGG-16 from conv1_1 to conv5_3 (Simonyan and Zisserman, arXiv 1409.1556), the paper's backbone.

State-dict keys equal torchvision's ``vgg16``: ``features.<i>``, its last pooling left out (P 3.1.1: the proposals
slide over the last *convolutional* map, at stride 16).
"""

from __future__ import annotations

from torch import Tensor, nn

# arXiv 1409.1556, Table 1, column D: widths of the 3x3 convolutions, a 2x2 max pooling between the groups.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """The thirteen convolutions of VGG-16.

    channels, strides: of the one map that ``forward`` returns.
    """

    channels: tuple[int, ...] = (512,)
    strides: tuple[int, ...] = (16,)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = 3
        for position, group in enumerate(GROUPS):
            if position:
                self.features.append(nn.MaxPool2d(kernel_size=2, stride=2))
            for width in group:
                self.features.append(nn.Conv2d(inputs, width, 3, padding=1))
                self.features.append(nn.ReLU(inplace=True))
                inputs = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """conv5_3 after its ReLU: float [B, 3, H, W] -> [one map [B, 512, H // 16, W // 16]]."""
        return [self.features(pixels)]


def vgg16() -> VGG16:
    """VGG-16's convolutions; weights random (He et al., fan-out) until loaded."""
    return VGG16()
