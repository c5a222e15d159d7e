"""Flattening channels last: the same outputs without a copy, for an fc6 of one layer and of two."""

import copy
from dataclasses import replace

import pytest
import torch

from model.faster_rcnn import FasterRCNN
from model.presets import LITE, RESNET50_FPN_V2
from model.runtime.flatten_channels_last import flatten_channels_last


@pytest.mark.parametrize("rank", [None, 5])
def test_the_box_head_gives_the_same_without_a_copy(rank: int | None) -> None:
    torch.manual_seed(0)
    config = replace(LITE.roi_head, resolution=3, fc_channels=(12, 12), fc6_rank=rank)
    model = FasterRCNN(replace(LITE, roi_head=config)).eval()
    plain = copy.deepcopy(model.roi_heads.box_head)
    pooled = torch.randn(6, 3, 3, LITE.fpn_channels).permute(0, 3, 1, 2)
    assert flatten_channels_last(model) == 1
    head = model.roi_heads.box_head
    with torch.no_grad():
        torch.testing.assert_close(head(pooled), plain(pooled))
        torch.testing.assert_close(head(pooled.contiguous()), plain(pooled))
        assert head.flatten(pooled).data_ptr() == pooled.data_ptr()
        assert plain.flatten(pooled).data_ptr() != pooled.data_ptr()
    assert head.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in head.state_dict().items())


def test_a_head_of_convolutions_stays() -> None:
    with torch.device("meta"):
        model = FasterRCNN(RESNET50_FPN_V2)
    head = copy.copy(dict(model.roi_heads.box_head.named_children()))
    assert flatten_channels_last(model) == 0
    assert dict(model.roi_heads.box_head.named_children()) == head
