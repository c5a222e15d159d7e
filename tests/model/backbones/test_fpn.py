"""The feature pyramid against torchvision's, with its random weights."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.backbones.fpn import FeaturePyramid
from tests.model.backbones.maps import assert_same_maps, randomise_norms

CHANNELS = (8, 16, 32)


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d], ids=["bias", "batch norm"])
@pytest.mark.parametrize("pool", [False, True], ids=["", "pooled level"])
def test_the_pyramid_gives_torchvisions_maps(norm: type[nn.BatchNorm2d] | None, pool: bool) -> None:
    extra = LastLevelMaxPool() if pool else None
    reference = randomise_norms(FeaturePyramidNetwork(list(CHANNELS), 12, extra_blocks=extra, norm_layer=norm))
    pyramid = FeaturePyramid(CHANNELS, 12, norm, pool=pool).eval()
    pyramid.load_state_dict(reference.state_dict())
    maps = [torch.randn(2, width, *side) for width, side in zip(CHANNELS, ((13, 22), (7, 11), (4, 6)), strict=True)]
    with torch.inference_mode():
        expected = reference(OrderedDict(zip("012", maps, strict=True)))
        assert_same_maps(pyramid(maps), list(expected.values()))
