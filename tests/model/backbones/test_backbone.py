"""A backbone is built from its configuration: the norms, the pyramid, and an error for an unknown name."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from model.backbones import build_backbone
from model.presets import LITE, MOBILENET_V3_320, MOBILENET_V3_FPN, PAPER_VGG16, RESNET50_FPN, RESNET50_FPN_V2


@pytest.mark.parametrize(
    ("config", "norm", "epsilon"),
    [
        (RESNET50_FPN, FrozenBatchNorm2d, 0.0),  # torchvision trained this checkpoint without an epsilon
        (RESNET50_FPN_V2, nn.BatchNorm2d, 1e-5),
        (MOBILENET_V3_FPN, FrozenBatchNorm2d, 1e-5),
        (MOBILENET_V3_320, FrozenBatchNorm2d, 1e-5),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_norms_are_frozen_unless_the_pyramid_has_its_own(config, norm, epsilon):
    with torch.device("meta"):
        backbone, channels = build_backbone(config)
    assert channels == config.fpn_channels
    norms = {type(module) for module in backbone.modules() if "BatchNorm" in type(module).__name__}
    assert norms == {norm}
    assert {module.eps for module in backbone.modules() if isinstance(module, norm)} == {epsilon}


def test_without_a_pyramid_the_last_map_is_returned():
    with torch.device("meta"):
        backbone, channels = build_backbone(PAPER_VGG16)
        assert [tuple(level.shape) for level in backbone(torch.empty(1, 3, 64, 96))] == [(1, 512, 4, 6)]
    assert (backbone.fpn, channels) == (None, 512)


def test_an_unknown_name_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="No backbone 'vgg19': one of vgg16, resnet50, mobilenet_v3_large, eff"):
        build_backbone(replace(LITE, backbone="vgg19"))
