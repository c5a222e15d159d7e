"""The arithmetic of the network: from what was asked and what the device can do."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.faster_rcnn import FasterRCNN
from model.runtime.cpu.int8.layers import can_quantize

# By name, the type of what is computed in floating point. tf32 rounds what it multiplies to 10 bits of fraction.
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,
}
# `auto` takes a short type on a GPU only where the network's answer moves by less than this share of its size. fp16 was
# seen to move it by some thousandths, bf16 by some hundredths (`python -m benchmarks.gpu`).
MOST_DRIFT = 0.1


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the hardware has products of bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_precision(asked: str, device: torch.device, drift: Callable[[str], float]) -> tuple[str, str]:
    """Return the precision that ``asked`` means on ``device``, and in a sentence why; an empty one if it was asked for.

    ``auto`` on a CPU is bf16 where the processor has products of it (AMX, AVX512-bf16; docs/engine.md has the figures),
    and fp32 elsewhere: there bf16 is emulated, slower than fp32. On a GPU it is fp16 or, from compute capability 8.0
    on, bf16, whichever moves the network's answer less; fp32 where both move it too far.
    drift: measures for a precision how far the answer moves from that of fp32, as a share of its size; inf where it is
    not finite. Raises ``ValueError`` for a precision that there is not, or not on this device.
    """
    if asked == "auto":
        if device.type == "cuda":
            return _choose_on_gpu(device, drift)
        return ("bf16" if multiplies_bf16(device) else "fp32"), ""
    if asked not in PRECISIONS:
        raise ValueError(f"precision must be auto, {', '.join(PRECISIONS)}, not {asked!r}.")
    if asked in ("fp16", "tf32") and device.type == "cpu":
        raise ValueError(f"precision {asked} is for GPUs; on a CPU use bf16, int8 or fp32.")
    if asked == "int8" and not can_quantize(device):
        raise ValueError("precision int8 is for CPUs, by oneDNN's operators in torch; use bf16, fp16 or fp32.")
    if asked in ("bf16", "tf32") and device.type == "cuda" and not multiplies_bf16(device):
        raise ValueError(
            f"precision {asked} needs a GPU of compute capability 8.0 or more, and this one has {_capability(device)}; "
            "use fp16 or fp32."
        )
    return asked, ""


def _choose_on_gpu(device: torch.device, drift: Callable[[str], float]) -> tuple[str, str]:
    names = ("fp16", "bf16") if multiplies_bf16(device) else ("fp16",)
    drifts = {name: drift(name) for name in names}
    best = min(drifts, key=lambda name: drifts[name])
    figures = ", ".join(f"{name} moves its answer by {value:.2g} of its size" for name, value in drifts.items())
    if not drifts[best] <= MOST_DRIFT:
        return "fp32", f"Precision fp32 was chosen since the network needs it: {figures}."
    return best, f"Precision {best} was chosen for compute capability {_capability(device)}: {figures}."


def _capability(device: torch.device) -> str:
    return ".".join(map(str, torch.cuda.get_device_capability(device)))


@torch.inference_mode()
def measure_drift(model: FasterRCNN, pixels: Tensor, regions: Tensor, dtype: torch.dtype) -> float:
    """Return how far ``dtype`` moves the network's answer: root mean square of the difference over that of fp32.

    model: in float32, on the device of pixels, normalised float32 [1, 3, H, W]. regions: float32 [R, 5] of (0, box on
    the canvas). The largest of the RPN's and the detector's logits and offsets counts; inf where one is not finite.
    """
    short = deepcopy(model).to(dtype).to(memory_format=torch.channels_last)
    worst = 0.0
    for exact, rounded in zip(
        _answers(model, pixels, regions), _answers(short, pixels.to(dtype), regions), strict=True
    ):
        share = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp(min=1e-12)
        if not bool(share.isfinite()):
            return float("inf")
        worst = max(worst, float(share))
    return worst


def _answers(model: FasterRCNN, pixels: Tensor, regions: Tensor) -> list[Tensor]:
    dense = model.run_convolutions(pixels)
    return [part.float() for part in (dense.logits, dense.deltas, *model.roi_heads(dense.maps, regions))]


def probe_image(canvas: tuple[int, int]) -> Tensor:
    """Make an image to measure with, uint8 [H, W, 3]: smooth random blobs with fine noise, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, max(2, canvas[0] // 48), max(2, canvas[1] // 48), generator=generator)
    smooth = F.interpolate(coarse, size=canvas, mode="bilinear", align_corners=False)
    noisy = smooth + 0.1 * torch.rand(1, 3, *canvas, generator=generator)
    return (noisy.clamp(0, 1) * 255).byte()[0].permute(1, 2, 0).contiguous()


def random_regions(canvas: tuple[int, int], count: int, device: torch.device) -> Tensor:
    """Make regions float32 [count, 5] of (0, box on the canvas) to measure with: the same at every call."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 4, generator=generator) * min(canvas) / 2
    return torch.cat((torch.zeros(count, 1), corners[:, :2], corners[:, :2] + corners[:, 2:] + 1), dim=1).to(device)


_cudnn: Any = torch.backends.cudnn  # of whose parts torch's annotations know nothing
_cublas: Any = torch.backends.cuda.matmul


class _Float32Products:
    """How cuDNN and cuBLAS multiply float32, which torch knows for the whole process alone.

    While detectors run it is "ieee" if one of them is to be fp32, else "tf32"; afterwards it is what it was before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._before = ("none", "none")

    def enter(self, precision: str) -> None:
        with self._lock:
            if not self._running.total():
                self._before = (_cudnn.conv.fp32_precision, _cublas.fp32_precision)
            self._running[precision] += 1
            self._apply()

    def leave(self, precision: str) -> None:
        with self._lock:
            self._running[precision] -= 1
            self._apply()

    def _apply(self) -> None:
        if self._running.total():
            wanted = ("ieee", "ieee") if self._running["fp32"] else ("tf32", "tf32")
        else:
            wanted = self._before
        _cudnn.conv.fp32_precision, _cublas.fp32_precision = wanted


_products = _Float32Products()


@contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """Multiply float32 within the block as ``precision`` says: exactly for fp32, in TF32 for tf32.

    By default cuDNN's convolutions use TF32, which is no fp32. On a CPU, and for other precisions, nothing changes.
    """
    if device.type != "cuda" or precision not in ("fp32", "tf32"):
        yield
        return
    _products.enter(precision)
    try:
        yield
    finally:
        _products.leave(precision)
