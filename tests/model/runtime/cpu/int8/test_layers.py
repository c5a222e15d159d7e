"""The quantized layers: exact for what the bytes stand for, and the sum, activation and padding that they fuse."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.runtime.cpu.int8.layers import (
    Quantize,
    Quantized,
    QuantizedConv2d,
    QuantizedLinear,
    QuantParams,
    can_quantize,
)

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_quantize(CPU), reason="this torch has no oneDNN, or other operators")
INPUT = QuantParams.from_range((-1.0, 3.0))
OUTPUT = QuantParams.from_range((-6.0, 6.0))


def _dequantize(values: Tensor, params: QuantParams) -> Tensor:
    return (values.float() - params.zero_point) * params.scale


def _weight(layer: Quantized, conv: nn.Conv2d | nn.Linear) -> Tensor:
    """Return the float weight that the layer's bytes stand for."""
    largest = conv.weight.flatten(1).abs().amax(dim=1)
    steps = (largest / layer.scales).round().view(-1, *[1] * (conv.weight.dim() - 1))
    scales = layer.scales.view_as(steps)
    return (conv.weight / scales).round().clamp(-steps, steps) * scales


def _bytes(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def _frozen(layer: nn.Module) -> nn.Module:
    return layer.eval().requires_grad_(False)


@pytest.mark.parametrize("values", [(0.0, 6.0), (-1.0, 3.0), (2.0, 5.0), (-3.0, -1.0), (0.0, 0.0)])
def test_the_parameters_cover_the_range_and_hold_zero(values: tuple[float, float]) -> None:
    params = QuantParams.from_range(values)
    first, last = (float(_dequantize(torch.tensor(byte), params)) for byte in (0, 255))
    assert first <= min(values[0], 0) + params.scale / 2
    assert last >= max(values[1], 0) - params.scale / 2
    assert 0 <= params.zero_point <= 255


def test_values_go_to_the_nearest_step_and_stay_within_a_byte() -> None:
    params = QuantParams(0.5, 10)
    values = torch.tensor([-100.0, -5.0, -0.3, 0.0, 0.2, 0.3, 1.24, 1.26, 122.5, 1e30, -1e30, float("inf")])
    assert Quantize(params)(values).tolist() == [0, 0, 9, 10, 10, 11, 12, 13, 255, 255, 0, 255]
    maps = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert Quantize(params)(maps).stride() == maps.stride()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 24, 1),
        nn.Conv2d(8, 24, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 16, (3, 1), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    ],
    ids=["1x1", "3x3 at a stride, no bias", "depthwise", "neither square nor dense"],
)
def test_a_convolution_computes_with_what_the_bytes_stand_for(conv: nn.Conv2d) -> None:
    layer = QuantizedConv2d(_frozen(conv), INPUT)  # type: ignore[arg-type]
    for shape in ((1, 8, 6, 10), (3, 8, 6, 10), (1, 8, 31, 17), (1, 8, 6, 10)):
        inputs = _bytes(*shape)
        options = (conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        expected = F.conv2d(_dequantize(inputs, INPUT), _weight(layer, conv), *options)  # type: ignore[arg-type]
        torch.testing.assert_close(layer(inputs), expected, atol=1e-4, rtol=1e-4)
    layer.output = OUTPUT
    torch.testing.assert_close(layer(inputs), Quantize(OUTPUT)(expected), atol=1, rtol=0)
    assert layer(inputs).dtype == torch.uint8


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardswish()], ids=lambda a: type(a).__name__)
def test_an_activation_is_fused(activation: nn.Module) -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1)
    layer = QuantizedConv2d(_frozen(conv), INPUT)  # type: ignore[arg-type]
    inputs = _bytes(2, 8, 6, 10)
    plain = layer(inputs)
    assert not layer.fuse_activation(nn.Sigmoid())
    assert layer.fuse_activation(activation)
    assert not layer.fuse_activation(activation), "there is one already"
    torch.testing.assert_close(layer(inputs), activation(plain), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rectified", [False, True])
def test_the_sum_with_another_map_is_fused(rectified: bool) -> None:
    layer = QuantizedConv2d(_frozen(nn.Conv2d(8, 16, 3, padding=1)), INPUT)  # type: ignore[arg-type]
    inputs, added = _bytes(2, 8, 6, 10), torch.randn(2, 16, 6, 10).contiguous(memory_format=torch.channels_last)
    expected = layer(inputs) + added
    layer.adds_map = True
    assert not layer.fuse_activation(nn.ReLU6()), "oneDNN has no such sum"
    if rectified:
        assert layer.fuse_activation(nn.ReLU())
        expected = expected.relu()
    torch.testing.assert_close(layer(inputs, added), expected, atol=1e-3, rtol=1e-3)


def test_an_uneven_padding_before_a_depthwise_convolution_is_fused() -> None:
    pad, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2, groups=8)
    layer = QuantizedConv2d(_frozen(conv), INPUT)  # type: ignore[arg-type]
    inputs = _bytes(1, 8, 12, 16)
    assert layer.fuse_padding(conv, pad)
    expected = F.conv2d(pad(_dequantize(inputs, INPUT)), _weight(layer, conv), conv.bias, 2, groups=8)
    torch.testing.assert_close(layer(inputs), expected, atol=1e-4, rtol=1e-4)
    dense = nn.Conv2d(8, 8, 3, stride=2)
    assert not QuantizedConv2d(_frozen(dense), INPUT).fuse_padding(dense, pad)  # type: ignore[arg-type]


def test_a_linear_layer_computes_with_what_the_bytes_stand_for() -> None:
    linear = nn.Linear(40, 24)
    layer = QuantizedLinear(_frozen(linear), linear.weight, INPUT)  # type: ignore[arg-type]
    for rows in (0, 1, 7, 300):
        inputs = torch.randint(0, 256, (rows, 40), dtype=torch.uint8)
        expected = F.linear(_dequantize(inputs, INPUT), _weight(layer, linear), linear.bias)
        torch.testing.assert_close(layer(inputs), expected, atol=1e-4, rtol=1e-4)
    assert layer.fuse_activation(nn.ReLU())
    layer.output = OUTPUT
    torch.testing.assert_close(layer(inputs), Quantize(OUTPUT)(expected.relu()), atol=1, rtol=0)


def test_weights_are_laid_out_once_for_a_shape_and_the_remembered_shapes_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.runtime.cpu.onednn_conv._SHAPES", 4)
    layer = QuantizedConv2d(_frozen(nn.Conv2d(8, 8, 3)), INPUT)  # type: ignore[arg-type]
    for height in range(3, 13):
        layer(_bytes(1, 8, height, 5))
    assert len(layer._layouts.by_shape) <= 4
    assert len(layer._layouts.by_layout) < 4
