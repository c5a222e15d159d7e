"""A quantized network: every preset's, near the one in float32, and what stays in bytes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from model.backbones.mobilenet import ROWS
from model.config import DetectorConfig
from model.faster_rcnn import FasterRCNN
from model.presets import PRESETS
from model.runtime.cpu.int8.layers import Quantize, Quantized, QuantizedConv2d, can_quantize, weight_qmax
from model.runtime.cpu.int8.quantize import quantizable_layers, quantize
from model.runtime.fold_batchnorm import fold_batchnorm
from model.training.quantization_ranges import record_ranges

pytestmark = pytest.mark.skipif(
    not can_quantize(torch.device("cpu")), reason="this torch has no oneDNN, or other operators"
)


def _model(config: DetectorConfig) -> FasterRCNN:
    """Make a folded network with random weights."""
    torch.manual_seed(0)
    model = FasterRCNN(config.with_classes(4)).eval().requires_grad_(False)
    fold_batchnorm(model)
    return model.to(memory_format=torch.channels_last)


def _pixels(batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 3, 64, 96).contiguous(memory_format=torch.channels_last)


def _ranges(model: FasterRCNN, pixels: Tensor, regions: Tensor) -> dict[str, tuple[float, float]]:
    with record_ranges(model) as ranges:
        _outputs(model, pixels, regions)
    return ranges


def _outputs(model: FasterRCNN, pixels: Tensor, regions: Tensor) -> list[Tensor]:
    dense = model.run_convolutions(pixels)
    logits, offsets = model.roi_heads(dense.maps, regions)
    return [*dense.maps, dense.logits, dense.deltas, logits, offsets]


REGIONS = torch.tensor([[0, 3.0, 4.0, 50.0, 40.0], [1, 10.0, 10.0, 90.0, 60.0], [1, 0.0, 0.0, 20.0, 30.0]])


@pytest.mark.parametrize("config", PRESETS, ids=lambda config: config.name)
def test_every_preset_computes_nearly_what_it_does_in_float32(config: DetectorConfig) -> None:
    exact = _model(config)
    quantized = copy.deepcopy(exact)
    with torch.inference_mode():
        expected = _outputs(exact, _pixels(), REGIONS)
        layers = quantize(quantized, _ranges(quantized, _pixels(), REGIONS))
        assert layers == len(quantizable_layers(exact))
        for _ in range(2):  # nothing that is overwritten is needed again
            for output, reference in zip(_outputs(quantized, _pixels(), REGIONS), expected, strict=True):
                spread = (reference - reference.mean()).square().mean().sqrt()
                assert output.shape == reference.shape
                assert output.dtype == torch.float32
                error = (output - reference).square().mean().sqrt()
                assert error <= 0.1 * spread * 127 / weight_qmax() + 1e-6


@pytest.mark.parametrize("config", PRESETS, ids=lambda config: config.name)
def test_all_but_the_first_and_the_last_layers_multiply_bytes(config: DetectorConfig) -> None:
    model = _model(config)
    names = quantizable_layers(model)
    with torch.inference_mode():
        quantize(model, _ranges(model, _pixels(), REGIONS))
    layers = [layer for layer in model.modules() if isinstance(layer, Quantized)]
    assert len(layers) == len(names)
    in_float32 = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    excitements = 2 * sum(row.excite for row in ROWS) if config.name.startswith("MOBILENET") else 0
    depthwise = config.name in ("LITE", "MOBILENET_V3_FPN", "MOBILENET_V3_320")  # follows the first convolution
    assert len(in_float32) == 1 + depthwise + excitements + 2  # logits and offsets


def test_a_chain_of_layers_stays_in_bytes_and_a_shortcut_is_added_in_the_same_call() -> None:
    (config,) = (config for config in PRESETS if config.name == "RESNET50_FPN")
    model = _model(config)
    with torch.inference_mode():
        quantize(model, _ranges(model, _pixels(), REGIONS))
    graph = model.backbone.graph  # type: ignore[union-attr]
    layers = dict(model.backbone.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]  # type: ignore[union-attr, operator]
    for block in ("layer1.0", "layer2.1", "layer4.2"):
        first, second, third = (layers[f"body.{block}.conv{number}"] for number in (1, 2, 3))
        assert isinstance(first, QuantizedConv2d)
        assert isinstance(second, QuantizedConv2d)
        assert first.output == second.input
        assert first.activation[0] == "relu"
        (call,) = (node for node in calls if node.target == f"body.{block}.conv3")
        assert len(call.args) == 2, "the shortcut"
        assert isinstance(third, QuantizedConv2d)
        assert third.output is None
    quantizers = [node for node in calls if isinstance(layers[node.target], Quantize)]
    assert len(quantizers) == 21  # one a block, one after the pooling, four for the pyramid
