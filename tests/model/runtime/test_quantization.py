"""A quantised detector: every preset's, near the one in float32, and refused where its ranges are not known."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.backbones.mobilenet import ROWS
from model.boxes import iou
from model.checkpoint import CheckpointError, read_ranges, resolve, write_ranges
from model.config import PRESETS, DetectorConfig
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.runtime.cpu.int8.layers import Quantize, Quantized, QuantizedConv2d, can_quantize, largest_weight
from model.runtime.cpu.int8.quantize import quantizable, quantize
from model.runtime.fold_batchnorm import fold_norms
from model.runtime.precision import choose_precision
from model.training.quantization_ranges import calibrate, watched

pytestmark = pytest.mark.skipif(
    not can_quantize(torch.device("cpu")), reason="this torch has no oneDNN, or other operators"
)


def _model(config: DetectorConfig) -> FasterRCNN:
    """Folded, with random weights, and norms that leave its maps in a sane range."""
    torch.manual_seed(0)
    model = FasterRCNN(config.with_classes(4)).eval().requires_grad_(False)
    fold_norms(model)
    return model.to(memory_format=torch.channels_last)


def _pixels(batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 3, 64, 96).contiguous(memory_format=torch.channels_last)


def _ranges(model: FasterRCNN, pixels: Tensor, regions: Tensor) -> dict[str, tuple[float, float]]:
    with watched(model) as ranges:
        _answers(model, pixels, regions)
    return ranges


def _answers(model: FasterRCNN, pixels: Tensor, regions: Tensor) -> list[Tensor]:
    dense = model.run_convolutions(pixels)
    logits, offsets = model.roi_heads(dense.maps, regions)
    return [*dense.maps, dense.logits, dense.deltas, logits, offsets]


REGIONS = torch.tensor([[0, 3.0, 4.0, 50.0, 40.0], [1, 10.0, 10.0, 90.0, 60.0], [1, 0.0, 0.0, 20.0, 30.0]])


@pytest.mark.parametrize("config", PRESETS, ids=lambda config: config.name)
def test_every_preset_answers_nearly_as_in_float32(config: DetectorConfig) -> None:
    exact = _model(config)
    short = copy.deepcopy(exact)
    with torch.inference_mode():
        right = _answers(exact, _pixels(), REGIONS)
        assert quantize(short, _ranges(short, _pixels(), REGIONS)) == len(quantizable(exact))
        for _ in range(2):  # what is written over is never needed again
            for mine, theirs in zip(_answers(short, _pixels(), REGIONS), right, strict=True):
                spread = (theirs - theirs.mean()).square().mean().sqrt()
                assert mine.shape == theirs.shape
                assert mine.dtype == torch.float32
                error = (mine - theirs).square().mean().sqrt()
                assert error <= 0.1 * spread * 127 / largest_weight() + 1e-6


@pytest.mark.parametrize("config", PRESETS, ids=lambda config: config.name)
def test_all_but_the_first_and_the_last_layers_multiply_bytes(config: DetectorConfig) -> None:
    model = _model(config)
    names = quantizable(model)
    with torch.inference_mode():
        quantize(model, _ranges(model, _pixels(), REGIONS))
    layers = [layer for layer in model.modules() if isinstance(layer, Quantized)]
    assert len(layers) == len(names)
    left = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    excitements = 2 * sum(row.excite for row in ROWS) if config.name.startswith("MOBILENET") else 0
    depthwise = config.name in ("LITE", "MOBILENET_V3_FPN", "MOBILENET_V3_320")  # follows the first convolution
    assert len(left) == 1 + depthwise + excitements + 2  # logits and offsets


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
        assert first.made == second.given
        assert first.activation[0] == "relu"
        (call,) = (node for node in calls if node.target == f"body.{block}.conv3")
        assert len(call.args) == 2, "the shortcut"
        assert isinstance(third, QuantizedConv2d)
        assert third.made is None
    grids = [node for node in calls if isinstance(layers[node.target], Quantize)]
    assert len(grids) == 21  # one a block, one after the pooling, four for the pyramid


# ------------------------------------------------------------------------------------- from the pictures to the answer
def test_the_bundled_weights_find_the_same_cat(chelsea: np.ndarray) -> None:
    exact = Detector.from_checkpoint("lite-voc20", precision="fp32")
    short = Detector.from_checkpoint("lite-voc20", precision="int8")
    (right,), (found,) = exact.detect([chelsea]), short.detect([chelsea])
    assert short.info.precision == "int8"
    assert short.info.engine == "eager"
    assert "int8" in short.info.engine_note
    assert found.labels[0] == right.labels[0] == "cat"
    assert float(iou(found.boxes[:1], right.boxes[:1])) > 0.95
    assert abs(float(found.scores[0] - right.scores[0])) < 0.03


def test_ranges_lie_beside_the_weights_and_say_of_which_they_are(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=f"frcnn calibrate PICTURES --weights {saved}"):
        Detector.from_checkpoint(saved, precision="int8")
    detector = Detector.from_checkpoint(saved, precision="fp32")
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    file, layers = calibrate(detector, [picture])
    assert file == saved.with_name("mine.ranges.json")
    assert layers == len(quantizable(detector.model))
    with watched(detector.model) as seen:
        detector.detect([picture])
    for name, (low, high) in read_ranges(resolve(saved)).items():
        assert (low, high) == pytest.approx(seen[name], rel=1e-3)
    assert Detector.from_checkpoint(saved, precision="int8").detect([picture])

    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="of other weights"):
        Detector.from_checkpoint(saved, precision="int8")
    name = next(iter(content["ranges"]))
    for broken in ({"ranges": {name: [2, 1]}}, {"ranges": {name: [1]}}, {"ranges": 3}):
        file.write_text(json.dumps(content | broken))
        with pytest.raises(CheckpointError, match="calibrate"):
            Detector.from_checkpoint(saved, precision="int8")
    file.write_text("{")
    with pytest.raises(CheckpointError, match="holds no ranges"):
        Detector.from_checkpoint(saved, precision="int8")
    write_ranges(resolve(saved), {name: (0.0, 1.0)}, 1)
    with pytest.raises(ValueError, match="No range is known"):
        Detector.from_checkpoint(saved, precision="int8")


def test_ranges_are_seen_in_float32_and_on_pictures() -> None:
    detector = Detector.random("LITE", precision="bf16")
    with pytest.raises(ValueError, match="in fp32"):
        calibrate(detector, [])
    with pytest.raises(ValueError, match="no pictures"):
        calibrate(Detector.random("LITE", precision="fp32"), [])


def test_int8_is_for_cpus() -> None:
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        choose_precision("int8", torch.device("cuda", 0), pytest.fail)
    assert choose_precision("auto", torch.device("cpu"), pytest.fail)[0] != "int8"
