"""Packed convolutions: the same outputs at every size, weights laid out once, and what is fused."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from model.backbones.efficientnet_lite import Conv
from model.config import DetectorConfig
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.presets import PRESETS
from model.runtime.cpu.onednn_conv import PackedConv2d, can_pack, pack_convolutions
from model.runtime.fold_batchnorm import fold_batchnorm
from model.runtime.precision import multiplies_bf16

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this torch has no oneDNN, or other operators")
TYPES = [torch.float32] + [torch.bfloat16] * multiplies_bf16(CPU)


def _ready(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    return model.eval().requires_grad_(False).to(dtype).to(memory_format=torch.channels_last)


def _maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 24, 1),
        nn.Conv2d(8, 24, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, (3, 1), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    ],
    ids=["1x1", "3x3 at a stride, no bias", "depthwise", "neither square nor dense"],
)
def test_a_packed_convolution_gives_the_same_at_every_size(conv: nn.Conv2d, dtype: torch.dtype) -> None:
    _ready(conv, dtype)
    packed = PackedConv2d(conv)
    for shape in ((1, 8, 6, 10), (3, 8, 6, 10), (1, 8, 31, 17), (1, 8, 6, 10)):
        maps = _maps(*shape, dtype=dtype)
        torch.testing.assert_close(packed(maps), conv(maps))


def test_weights_are_laid_out_once_for_a_shape_and_kept_once_for_a_layout() -> None:
    packed = PackedConv2d(_ready(nn.Conv2d(8, 8, 3)))  # type: ignore[arg-type]
    laid_out = [packed._pack(torch.Size((batch, 8, 16, 16))) for batch in (1, 2, 3)]
    assert len({id(weights) for weights in laid_out}) == len(packed._layouts.by_layout) < 3
    assert len(packed._layouts.by_shape) == 3


def test_the_remembered_shapes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.runtime.cpu.onednn_conv._SHAPES", 4)
    packed = PackedConv2d(_ready(nn.Conv2d(1, 1, 1)))  # type: ignore[arg-type]
    for width in range(1, 12):
        packed(_maps(1, 1, 1, width))
        assert len(packed._layouts.by_shape) <= 4


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(inplace=True), nn.Hardswish()], ids=str)
def test_the_activation_after_it_is_fused(activation: nn.Module) -> None:
    layers = _ready(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Identity(), activation))
    plain, maps = copy.deepcopy(layers), _maps(1, 8, 9, 9) * 10
    assert pack_convolutions(layers) == 1
    assert isinstance(layers[2], nn.Identity)
    torch.testing.assert_close(layers(maps), plain(maps), atol=1e-5, rtol=0)
    assert float(plain(maps).max()) > 6 or isinstance(activation, nn.ReLU6)


def test_an_activation_that_does_not_follow_directly_stays() -> None:
    class Squeeze(nn.Module):
        """Its layers are used in another order than they are listed in."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.relu = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()

        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return self.second(self.relu(self.first(maps)))

    for layers in (
        Squeeze(),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Sigmoid(), nn.ReLU6()),
    ):
        plain = copy.deepcopy(_ready(layers))
        pack_convolutions(layers)
        torch.testing.assert_close(layers(_maps(1, 4, 6, 6)), plain(_maps(1, 4, 6, 6)))


def test_convolutions_with_other_padding_stay() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    assert pack_convolutions(layers) == 0
    for conv in layers:
        with pytest.raises(ValueError, match="fixed number of zeros"):
            PackedConv2d(conv)  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", [3, 5])
def test_an_uneven_padding_before_a_depthwise_convolution_is_fused(kernel: int) -> None:
    torch.manual_seed(0)
    layers = _ready(Conv(8, 8, kernel, stride=2, groups=8))
    plain, maps = copy.deepcopy(layers), _maps(2, 8, 12, 18)
    assert pack_convolutions(layers) == 1
    assert [type(layer) for layer in layers] == [nn.Identity, PackedConv2d, nn.Identity]  # type: ignore[attr-defined]
    torch.testing.assert_close(layers(maps), plain(maps))
    assert layers.conv.weight.shape == (8, 1, kernel, kernel)


@pytest.mark.parametrize(
    "layers",
    [
        Conv(3, 8, 3, stride=2),
        nn.Sequential(nn.ZeroPad2d((1, 1, 1, 1)), nn.Conv2d(8, 8, 3, groups=8)),
        nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(8, 8, 3, groups=8)),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)),
    ],
    ids=["not depthwise", "even", "uneven in two ways", "padded twice", "something between"],
)
def test_other_padding_stays(layers: nn.Sequential) -> None:
    plain, maps = copy.deepcopy(_ready(layers)), _maps(1, 3 if isinstance(layers, Conv) else 8, 8, 8)
    assert pack_convolutions(layers) == 1
    assert isinstance(layers[0], nn.ZeroPad2d)
    torch.testing.assert_close(layers(maps), plain(maps))


@pytest.mark.parametrize("config", PRESETS, ids=lambda config: config.name)
def test_every_preset_gives_the_same_and_keeps_its_state_dict(config: DetectorConfig) -> None:
    torch.manual_seed(0)
    model = FasterRCNN(config.with_classes(3))
    _ready(model)
    fold_batchnorm(model)
    keys, pixels = {name: value.data_ptr() for name, value in model.state_dict().items()}, _maps(1, 3, 64, 96)
    with torch.inference_mode():
        before = model.run_convolutions(pixels)
        assert pack_convolutions(model) > 10
        assert {name: value.data_ptr() for name, value in model.state_dict().items()} == keys
        after = model.run_convolutions(pixels)
    for expected, output in zip((*before.maps, before.logits), (*after.maps, after.logits), strict=True):
        torch.testing.assert_close(output, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_detector_on_a_cpu_is_packed_and_its_state_dict_is_still_the_models() -> None:
    detector = Detector.random("LITE", device="cpu", precision="fp32")
    fresh = FasterRCNN(detector.config)
    torch.manual_seed(0)
    expected = FasterRCNN(detector.config).state_dict()
    fresh.load_state_dict(detector.model.state_dict())
    assert all(torch.equal(value, expected[name]) for name, value in fresh.state_dict().items())
    kinds = {type(layer) for layer in detector.model.modules() if isinstance(layer, nn.Conv2d)}
    assert kinds == {PackedConv2d}


def test_other_devices_and_types_are_refused() -> None:
    assert not can_pack(torch.device("cuda:0"), torch.float32)
    assert not can_pack(CPU, torch.float16)


def test_a_torch_without_these_operators_cannot_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", OrderedDict())
    assert not can_pack(CPU, torch.float32)
