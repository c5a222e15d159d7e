"""The choice of the precision: what each device offers, and what ``auto`` makes of the measured drift."""

import math

import pytest
import torch

from model.runtime import precision
from model.runtime.precision import choose_precision, float32_products, measure_drift, random_regions

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def fail_to_measure(_: str) -> float:
    pytest.fail("nothing had to be measured")


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Return a function that gives the GPU a compute capability."""
    return lambda *numbers: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: numbers)


@pytest.mark.parametrize(("has_bf16", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_cpu_depends_on_the_processor_alone(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, chosen: str
) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda _: has_bf16)
    assert choose_precision("auto", CPU, fail_to_measure) == (chosen, "")


@pytest.mark.parametrize(
    ("numbers", "drifts", "chosen"),
    [
        ((9, 0), {"fp16": 0.002, "bf16": 0.02}, "fp16"),
        ((9, 0), {"fp16": 0.03, "bf16": 0.02}, "bf16"),
        ((8, 0), {"fp16": math.inf, "bf16": 0.02}, "bf16"),
        ((8, 0), {"fp16": 0.5, "bf16": 0.3}, "fp32"),
        ((8, 0), {"fp16": math.inf, "bf16": math.inf}, "fp32"),
        ((7, 5), {"fp16": 0.002}, "fp16"),
        ((7, 5), {"fp16": math.inf}, "fp32"),
        ((7, 5), {"fp16": math.nan}, "fp32"),
    ],
)
def test_auto_on_a_gpu_takes_what_moves_the_output_less(
    capability, numbers: tuple[int, int], drifts: dict[str, float], chosen: str
) -> None:
    capability(*numbers)
    name, reason = choose_precision("auto", GPU, lambda requested: drifts[requested])
    assert name == chosen
    assert f"Precision {chosen} was chosen" in reason
    assert all(f"{requested} moves its output by {drift:.2g}" in reason for requested, drift in drifts.items())


@pytest.mark.parametrize(
    ("requested", "device", "numbers", "message"),
    [
        ("fp64", CPU, None, "must be auto, fp32, tf32, bf16, fp16, int8, not 'fp64'"),
        ("fp16", CPU, None, "fp16 is for GPUs"),
        ("tf32", CPU, None, "tf32 is for GPUs"),
        ("int8", GPU, (9, 0), "int8 is for CPUs"),
        ("bf16", GPU, (7, 5), "needs a GPU of compute capability 8.0 or more, and this one has 7.5; use fp16 or fp32"),
        ("tf32", GPU, (7, 5), "needs a GPU of compute capability 8.0 or more"),
    ],
)
def test_what_a_device_does_not_offer_is_refused(
    capability, requested: str, device: torch.device, numbers: tuple[int, int] | None, message: str
) -> None:
    if numbers:
        capability(*numbers)
    with pytest.raises(ValueError, match=message):
        choose_precision(requested, device, fail_to_measure)


class Network(torch.nn.Module):
    """A network whose logits are its pixels times one weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([weight]))
        self.maps: list[torch.Tensor] = []

    def run_convolutions(self, pixels: torch.Tensor):  # type: ignore[no-untyped-def]
        self.logits = pixels.flatten(1) * self.weight
        self.deltas = self.logits * 0 + 1
        return self

    def roi_heads(self, maps, regions):  # type: ignore[no-untyped-def]
        return self.logits, self.deltas


@pytest.mark.parametrize(
    ("weight", "dtype", "low", "high"),
    [
        (1.0, torch.float32, 0, 0),
        (1 + 2**-9, torch.bfloat16, 2**-10, 2**-8),  # rounded to 1: half a step of bf16
        (1e5, torch.float16, math.inf, math.inf),  # more than float16 holds
    ],
)
def test_drift_is_the_share_by_which_the_output_moves(
    weight: float, dtype: torch.dtype, low: float, high: float
) -> None:
    pixels = torch.ones(1, 1, 2, 2)
    assert low <= measure_drift(Network(weight), pixels, torch.zeros(1, 5), dtype) <= high  # type: ignore[arg-type]


def test_regions_to_measure_with_lie_on_the_canvas() -> None:
    regions = random_regions((64, 96), 50, CPU)
    assert regions.shape == (50, 5)
    assert (regions[:, 0] == 0).all()
    assert (regions[:, 3:] > regions[:, 1:3]).all()
    assert float(regions.max()) <= 97


def test_tf32_is_as_it_was_after_an_error() -> None:
    def fail() -> None:
        with float32_products("fp32", GPU):
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
            raise KeyError

    before = torch.backends.cudnn.conv.fp32_precision
    with pytest.raises(KeyError):
        fail()
    assert torch.backends.cudnn.conv.fp32_precision == before
