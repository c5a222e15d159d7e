"""ResNet-50 against torchvision's, with its random weights: same keys, same maps."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.models._utils import IntermediateLayerGetter

from model.backbones.resnet import ResNet50
from tests.model.backbones.maps import NORMS, assert_same_maps, randomise_norms


@pytest.mark.parametrize("norm", NORMS)
def test_resnet50_gives_torchvisions_maps(norm: str) -> None:
    torch.manual_seed(0)
    stages = {f"layer{k}": str(k) for k in range(1, 5)}
    reference = randomise_norms(torchvision.models.resnet50(weights=None, norm_layer=NORMS[norm]))
    body = ResNet50(NORMS[norm]).eval()
    # resnet50 without its classifier is what the detectors keep
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    assert set(body.state_dict()) == set(state)
    body.load_state_dict(state)
    pixels = torch.randn(2, 3, 96, 70)
    with torch.inference_mode():
        maps = body(pixels)
        assert_same_maps(maps, list(IntermediateLayerGetter(reference, stages)(pixels).values()))
    assert tuple(map_.shape[1] for map_ in maps) == body.channels
    assert [map_.shape[2] for map_ in maps] == [96 // stride for stride in body.strides]
