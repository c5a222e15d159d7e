"""The passes together: the report, the passes that each precision leaves out, and unchanged detections."""

import numpy as np
import pytest
import torch
from torch import nn

from model.boxes import iou
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.presets import MOBILENET_V3_320
from model.runtime import optimize
from model.runtime.cpu.int8.layers import can_quantize
from model.runtime.cpu.onednn_conv import PackedConv2d, can_pack
from model.runtime.optimize import OptimizationReport, optimize_for_inference

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(
    not (can_quantize(CPU) and can_pack(CPU, torch.float32)), reason="this torch has no oneDNN, or other operators"
)


def _optimize(precision: str, **options: str) -> tuple[FasterRCNN, OptimizationReport]:
    model = FasterRCNN(MOBILENET_V3_320.with_classes(3))
    return optimize_for_inference(model, CPU, precision, **options)  # type: ignore[arg-type]


def _passes(report: OptimizationReport) -> list[str]:
    words = ("batch norms", "flattened", "chosen", "int8", "no products of bf16", "Winograd", "oneDNN's operator,")
    return [word for sentence in report.optimizations for word in words if word in sentence]


@needs_onednn
def test_a_model_in_fp32_goes_through_the_passes_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "use_winograd", lambda model: 3)
    model, report = _optimize("fp32")
    assert (report.precision, report.dtype) == ("fp32", torch.float32)
    assert _passes(report) == ["batch norms", "flattened", "Winograd", "oneDNN's operator,"]
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    assert any(isinstance(layer, PackedConv2d) for layer in model.modules())


def test_exact_canvases_leave_winograd_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "use_winograd", lambda model: pytest.fail("Winograd changes the last digits"))
    assert "Winograd" not in _passes(_optimize("fp32", canvas="exact")[1])


def test_emulated_bf16_stays_in_float32_and_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "multiplies_bf16", lambda device: False)
    model, report = _optimize("bf16")
    assert (report.precision, report.dtype) == ("bf16", torch.float32)
    assert _passes(report) == ["batch norms", "flattened", "no products of bf16"]
    assert not any(isinstance(layer, PackedConv2d) for layer in model.modules())


def test_bf16_of_the_processor_is_the_type_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "multiplies_bf16", lambda device: True)
    model, report = _optimize("bf16")
    assert (report.precision, report.dtype) == ("bf16", torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_precision_that_is_chosen_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "choose_precision", lambda requested, device, drift: ("fp32", "It was chosen."))
    report = _optimize("auto")[1]
    assert report.precision == "fp32"
    assert "It was chosen." in report.optimizations


@needs_onednn
def test_the_bundled_weights_detect_the_same_cat_in_int8(chelsea: np.ndarray) -> None:
    exact = Detector.from_checkpoint("lite-voc20", precision="fp32")
    quantized = Detector.from_checkpoint("lite-voc20", precision="int8")
    (expected,), (detections,) = exact.detect([chelsea]), quantized.detect([chelsea])
    assert quantized.info.precision == "int8"
    assert "58 layers multiply int8, by oneDNN's operators." in quantized.info.optimizations
    assert detections.labels[0] == expected.labels[0] == "cat"
    assert float(iou(detections.boxes[:1], expected.boxes[:1])) > 0.95
    assert abs(float(detections.scores[0] - expected.scores[0])) < 0.03
