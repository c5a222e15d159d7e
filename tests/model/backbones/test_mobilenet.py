"""MobileNetV3 against torchvision's, with its random weights: same keys, same maps."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.models._utils import IntermediateLayerGetter

from model.backbones.mobilenet import MobileNetV3Large
from tests.model.backbones.maps import NORMS, assert_same_maps, randomise_norms


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_mobilenet_gives_torchvisions_two_maps(norm: str) -> None:
    torch.manual_seed(0)
    reference = randomise_norms(torchvision.models.mobilenet_v3_large(weights=None, norm_layer=NORMS[norm])).features
    body = MobileNetV3Large(NORMS[norm]).eval()
    assert set(body.state_dict()) == set(reference.state_dict())
    body.load_state_dict(reference.state_dict())
    pixels = torch.randn(2, 3, 96, 70)
    with torch.inference_mode():
        maps = body(pixels)
        assert_same_maps(maps, list(IntermediateLayerGetter(reference, {"13": "0", "16": "1"})(pixels).values()))
    assert tuple(map_.shape[1] for map_ in maps) == body.channels
