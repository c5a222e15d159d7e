"""The quantised layers: exact on the grids, and the sum, the activation and the padding in the same call."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.runtime.cpu.int8.layers import Grid, Quantize, Quantized, QuantizedConv2d, QuantizedLinear, can_quantize

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_quantize(CPU), reason="this torch has no oneDNN, or other operators")
GIVEN = Grid.of((-1.0, 3.0))
MADE = Grid.of((-6.0, 6.0))


def _floats(values: Tensor, grid: Grid) -> Tensor:
    return (values.float() - grid.zero) * grid.scale


def _weight(layer: Quantized, conv: nn.Conv2d | nn.Linear) -> Tensor:
    """The float weight that the bytes stand for."""
    most = conv.weight.flatten(1).abs().amax(dim=1)
    steps = (most / layer.scales).round().view(-1, *[1] * (conv.weight.dim() - 1))
    scales = layer.scales.view_as(steps)
    return (conv.weight / scales).round().clamp(-steps, steps) * scales


def _bytes(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)


def _still(layer: nn.Module) -> nn.Module:
    return layer.eval().requires_grad_(False)


@pytest.mark.parametrize("seen", [(0.0, 6.0), (-1.0, 3.0), (2.0, 5.0), (-3.0, -1.0), (0.0, 0.0)])
def test_a_grid_reaches_over_what_was_seen_and_has_nought_on_it(seen: tuple[float, float]) -> None:
    grid = Grid.of(seen)
    first, last = (float(_floats(torch.tensor(byte), grid)) for byte in (0, 255))
    assert first <= min(seen[0], 0) + grid.scale / 2
    assert last >= max(seen[1], 0) - grid.scale / 2
    assert 0 <= grid.zero <= 255


def test_values_go_to_the_nearest_step_and_no_further_than_the_ends() -> None:
    grid = Grid(0.5, 10)
    values = torch.tensor([-100.0, -5.0, -0.3, 0.0, 0.2, 0.3, 1.24, 1.26, 122.5, 1e30, -1e30, float("inf")])
    assert Quantize(grid)(values).tolist() == [0, 0, 9, 10, 10, 11, 12, 13, 255, 255, 0, 255]
    maps = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert Quantize(grid)(maps).stride() == maps.stride()


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
def test_a_convolution_is_the_float_one_of_what_the_bytes_stand_for(conv: nn.Conv2d) -> None:
    layer = QuantizedConv2d(_still(conv), GIVEN)  # type: ignore[arg-type]
    for shape in ((1, 8, 6, 10), (3, 8, 6, 10), (1, 8, 31, 17), (1, 8, 6, 10)):
        given = _bytes(*shape)
        how = (conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        right = F.conv2d(_floats(given, GIVEN), _weight(layer, conv), *how)  # type: ignore[arg-type]
        torch.testing.assert_close(layer(given), right, atol=1e-4, rtol=1e-4)
    layer.made = MADE
    torch.testing.assert_close(layer(given), Quantize(MADE)(right), atol=1, rtol=0)
    assert layer(given).dtype == torch.uint8


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardswish()], ids=lambda a: type(a).__name__)
def test_an_activation_is_part_of_the_call(activation: nn.Module) -> None:
    conv = nn.Conv2d(8, 16, 3, padding=1)
    layer = QuantizedConv2d(_still(conv), GIVEN)  # type: ignore[arg-type]
    given = _bytes(2, 8, 6, 10)
    plain = layer(given)
    assert not layer.then(nn.Sigmoid())
    assert layer.then(activation)
    assert not layer.then(activation), "there is one already"
    torch.testing.assert_close(layer(given), activation(plain), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rectified", [False, True])
def test_another_map_is_added_in_the_call(rectified: bool) -> None:
    layer = QuantizedConv2d(_still(nn.Conv2d(8, 16, 3, padding=1)), GIVEN)  # type: ignore[arg-type]
    given, added = _bytes(2, 8, 6, 10), torch.randn(2, 16, 6, 10).contiguous(memory_format=torch.channels_last)
    right = layer(given) + added
    layer.summed = True
    assert not layer.then(nn.ReLU6()), "oneDNN has no such sum"
    if rectified:
        assert layer.then(nn.ReLU())
        right = right.relu()
    torch.testing.assert_close(layer(given, added), right, atol=1e-3, rtol=1e-3)


def test_an_uneven_padding_is_taken_into_a_depthwise_convolution() -> None:
    pad, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2, groups=8)
    layer = QuantizedConv2d(_still(conv), GIVEN)  # type: ignore[arg-type]
    given = _bytes(1, 8, 12, 16)
    assert layer.after(conv, pad)
    right = F.conv2d(pad(_floats(given, GIVEN)), _weight(layer, conv), conv.bias, 2, groups=8)
    torch.testing.assert_close(layer(given), right, atol=1e-4, rtol=1e-4)
    dense = nn.Conv2d(8, 8, 3, stride=2)
    assert not QuantizedConv2d(_still(dense), GIVEN).after(dense, pad)  # type: ignore[arg-type]


def test_a_linear_layer_is_the_float_one_of_what_the_bytes_stand_for() -> None:
    linear = nn.Linear(40, 24)
    layer = QuantizedLinear(_still(linear), linear.weight, GIVEN)  # type: ignore[arg-type]
    for rows in (0, 1, 7, 300):
        given = torch.randint(0, 256, (rows, 40), dtype=torch.uint8)
        right = F.linear(_floats(given, GIVEN), _weight(layer, linear), linear.bias)
        torch.testing.assert_close(layer(given), right, atol=1e-4, rtol=1e-4)
    assert layer.then(nn.ReLU())
    layer.made = MADE
    torch.testing.assert_close(layer(given), Quantize(MADE)(right.relu()), atol=1, rtol=0)


def test_weights_are_laid_out_once_for_a_size_and_sizes_without_end_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.runtime.cpu.onednn_conv._SHAPES", 4)
    layer = QuantizedConv2d(_still(nn.Conv2d(8, 8, 3)), GIVEN)  # type: ignore[arg-type]
    for height in range(3, 13):
        layer(_bytes(1, 8, height, 5))
    assert len(layer._layouts.by_shape) <= 4
    assert len(layer._layouts.by_layout) < 4
