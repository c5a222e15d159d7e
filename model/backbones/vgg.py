"""VGG-16 from conv1_1 to conv5_3 (Simonyan and Zisserman, arXiv 1409.1556), the paper's backbone.

State-dict keys equal torchvision's ``vgg16``: ``features.<i>``, its last pooling left out: the RPN slides over
the last *convolutional* map, at stride 16 (arXiv 1506.01497, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model.backbones.spec import BackboneSpec

# arXiv 1409.1556, Table 1, column D: widths of the 3x3 convolutions, a 2x2 max pooling between the groups.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """The thirteen convolutions of VGG-16; weights random (He et al., fan-out) until loaded.

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
        """Map float [B, 3, H, W] to conv5_3 after its ReLU, a list of one map [B, 512, H // 16, W // 16]."""
        return [self.features(pixels)]


def from_imagenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's ``vgg16`` to a detector's keys, fc6 and fc7 included, as py-faster-rcnn trains from them.

    In torchvision's IMAGENET1K_FEATURES those two are NaN, and are left out.
    """
    renamed = {f"backbone.body.{key}": value for key, value in state.items() if key.startswith("features.")}
    # torchvision's classifier: Linear, ReLU, Dropout, Linear, ReLU, Dropout, Linear. The last predicts ImageNet's
    # classes, which a detector has no use for.
    for layer, name in (("classifier.0", "fc6"), ("classifier.3", "fc7")):
        for kind in ("weight", "bias"):
            value = state.get(f"{layer}.{kind}")
            if value is not None and bool(torch.isfinite(value).all()):
                renamed[f"roi_heads.box_head.{name}.{kind}"] = value
    return renamed


SPEC = BackboneSpec(
    build=lambda _norm: VGG16(),
    key="features.28.weight",
    first_conv="features.0",
    frozen=("features.0.", "features.2.", "features.5.", "features.7."),  # conv1_1 to conv2_2
    imagenet_source="torchvision's vgg16",
    imagenet_key="features.28.weight",
    from_imagenet=from_imagenet,
)
