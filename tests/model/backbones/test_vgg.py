"""VGG-16 against torchvision's, with its random weights: same maps."""

from __future__ import annotations

import torch
import torchvision

from model.backbones.vgg import VGG16
from tests.model.backbones.maps import assert_same_maps


def test_vgg16_gives_torchvisions_conv5_3() -> None:
    torch.manual_seed(0)
    reference = torchvision.models.vgg16(weights=None).features.eval()
    body = VGG16().eval()
    body.features.load_state_dict(reference.state_dict())
    pixels = torch.randn(1, 3, 70, 97)
    with torch.inference_mode():
        maps = body(pixels)
        assert_same_maps(maps, [reference[:-1](pixels)])  # all but pool5
    assert maps[0].shape == (1, 512, 70 // 16, 97 // 16)
    assert (body.channels, body.strides) == ((512,), (16,))
