"""Flattening channels last: the same answers without a copy, for an fc6 of one layer and of two."""

import copy
from dataclasses import replace

import pytest
import torch

from model.config import LITE
from model.roi_head import BoxHead, ConvBoxHead
from model.runtime.flatten_channels_last import flatten_channels_last


@pytest.mark.parametrize("rank", [None, 5])
def test_the_box_head_answers_as_before(rank: int | None) -> None:
    torch.manual_seed(0)
    config = replace(LITE.roi_head, resolution=3, fc_channels=(12, 12), fc6_rank=rank)
    head = BoxHead(4, config).eval()
    plain, pooled = copy.deepcopy(head), torch.randn(6, 3, 3, 4).permute(0, 3, 1, 2)
    assert flatten_channels_last(head, 3)
    with torch.no_grad():
        torch.testing.assert_close(head(pooled), plain(pooled))
        torch.testing.assert_close(head(pooled.contiguous()), plain(pooled))
        assert head.flatten(pooled).data_ptr() == pooled.data_ptr()
        assert plain.flatten(pooled).data_ptr() != pooled.data_ptr()
    assert head.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in head.state_dict().items())


def test_a_head_of_convolutions_stays() -> None:
    head = ConvBoxHead(4, replace(LITE.roi_head, conv_channels=(4,)))
    assert not flatten_channels_last(head, 7)
