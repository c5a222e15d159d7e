"""Emulated bfloat16 computes what hardware does: products of 8-bit numbers, summed in float32, rounded once."""

import pytest
import torch
from torch import nn

from model.detector import Detector
from model.runtime import precision
from model.runtime.cpu.emulate_bf16 import emulate_bf16


def is_bf16(values: torch.Tensor) -> bool:
    return torch.equal(values, values.bfloat16().float())


def test_the_input_weights_and_output_of_a_layer_are_rounded() -> None:
    torch.manual_seed(0)
    layer, values = nn.Linear(64, 16), torch.randn(5, 64)
    exact = values.bfloat16().float() @ layer.weight.bfloat16().float().T + layer.bias.bfloat16().float()
    assert emulate_bf16(layer) == 1
    with torch.no_grad():
        output = layer(values)
    assert is_bf16(output)
    assert is_bf16(layer.weight)
    # The order of the sum may carry a value over the middle between two neighbours: a step is 2^-8 of a number.
    torch.testing.assert_close(output, exact.bfloat16().float(), rtol=2**-7, atol=1e-4)


def test_a_convolution_agrees_with_torch_in_bfloat16() -> None:
    torch.manual_seed(1)
    layer, values = nn.Conv2d(8, 12, 3, padding=1), torch.randn(1, 8, 9, 11)
    native = nn.Conv2d(8, 12, 3, padding=1).bfloat16()
    native.load_state_dict(layer.state_dict())
    assert emulate_bf16(layer) == 1
    with torch.no_grad():
        torch.testing.assert_close(layer(values), native(values.bfloat16()).float(), rtol=2**-6, atol=2e-3)


def test_bf16_on_a_processor_without_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(precision.torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    detector = Detector.random("LITE", precision="bf16", device="cpu")
    assert detector.info.precision == "bf16"
    assert any("no products of bf16" in sentence for sentence in detector.info.optimizations)
    assert all(is_bf16(parameter) for parameter in detector.model.parameters())
