"""Uneven padding inside depthwise convolutions: the same answers, and nobody else's kernels are touched."""

import copy

import pytest
import torch
from torch import nn

from model.backbones.efficientnet_lite import Conv, efficientnet_lite0
from model.runtime.padding import pad_in_convolutions


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_widened_kernel_answers_as_the_padded_map(kernel: int) -> None:
    torch.manual_seed(0)
    layer = Conv(8, 8, kernel, stride=2, groups=8).eval()
    plain, maps = copy.deepcopy(layer), torch.randn(2, 8, 12, 18)
    assert pad_in_convolutions(nn.Sequential(layer)) == 1
    assert layer.conv.weight.shape == (8, 1, kernel + 1, kernel + 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(maps), plain(maps))


@pytest.mark.parametrize(
    "layers",
    [
        Conv(3, 8, 3, stride=2),
        Conv(8, 8, 3, groups=8),
        nn.Sequential(nn.ZeroPad2d((1, 1, 1, 1)), nn.Conv2d(8, 8, 3, groups=8)),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)),
    ],
    ids=["not depthwise", "no padding of its own", "even", "padded twice", "something between"],
)
def test_others_stay(layers: nn.Module) -> None:
    before = [str(layer) for layer in layers.modules()]
    assert pad_in_convolutions(nn.Sequential(layers)) == 0
    assert [str(layer) for layer in layers.modules()] == before


def test_efficientnet_lite_answers_as_before() -> None:
    torch.manual_seed(0)
    body = efficientnet_lite0().eval()
    pixels = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        before = body(pixels)
        assert pad_in_convolutions(body) == 4
        for one, other in zip(before, body(pixels), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
