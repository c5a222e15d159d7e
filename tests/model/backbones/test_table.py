"""Every backbone of the table trains, is recognised by its keys, and says how large its maps are."""

import pytest
import torch
from torch import nn

from model.backbones import BACKBONES, identify_backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_reach_every_weight(name: str) -> None:
    body = BACKBONES[name].build(nn.BatchNorm2d).train()
    sum(map_.float().mean() for map_ in body(torch.randn(2, 3, 64, 64))).backward()
    missing = [name for name, parameter in body.named_parameters() if parameter.grad is None]
    assert missing == []


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_have_the_channels_and_strides_that_the_body_states(name: str) -> None:
    body = BACKBONES[name].build(nn.BatchNorm2d).eval()
    with torch.inference_mode():
        maps = body(torch.randn(1, 3, 64, 96))
    expected = [
        (1, channels, 64 // stride, 96 // stride) for channels, stride in zip(body.channels, body.strides, strict=True)
    ]
    assert [tuple(map_.shape) for map_ in maps] == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_recognised_by_its_keys(name: str) -> None:
    with torch.device("meta"):
        body = BACKBONES[name].build(nn.BatchNorm2d)
    assert identify_backbone({f"backbone.body.{key}" for key in body.state_dict()}) == name
    assert f"{BACKBONES[name].first_conv}.weight" in body.state_dict()


def test_unknown_keys_have_no_backbone() -> None:
    assert identify_backbone({"layer4.0.conv1.weight"}) is None
