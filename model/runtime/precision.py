"""The choice of the network's precision: from the setting and from what the device can do."""

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
from model.runtime.buckets import Canvas
from model.runtime.cpu.int8.layers import can_quantize
from model.transform import Transform

# The type of the network's floating-point tensors, by precision. tf32 rounds factors to 10 bits of fraction.
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,
}
# `auto` takes a 16-bit type on a GPU only where the network's output moves by less than this share of its size. fp16
# moves it by some thousandths, bf16 by some hundredths (`python -m benchmarks.gpu`).
MOST_DRIFT = 0.1


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16; elsewhere torch emulates it, slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_precision(requested: str, device: torch.device, drift: Callable[[str], float]) -> tuple[str, str]:
    """Return the precision for ``requested`` on ``device``, and a sentence with the reason, empty without ``auto``.

    ``auto`` on a CPU is bf16 where the processor multiplies it (AMX, AVX512-bf16; docs/engine.md has the figures), and
    fp32 elsewhere. On a GPU it is fp16 or, from compute capability 8.0 on, bf16, whichever moves the network's output
    less; fp32 where both move it too far.
    drift: measures for a precision how far the output moves from that of fp32, as a share of its size; inf where it is
    not finite. Raises ``ValueError`` for an unknown precision, and for one that the device does not offer.
    """
    if requested == "auto":
        if device.type == "cuda":
            return _choose_on_gpu(device, drift)
        return ("bf16" if multiplies_bf16(device) else "fp32"), ""
    if requested not in PRECISIONS:
        raise ValueError(f"precision must be auto, {', '.join(PRECISIONS)}, not {requested!r}.")
    if requested in ("fp16", "tf32") and device.type == "cpu":
        raise ValueError(f"precision {requested} is for GPUs; on a CPU use bf16, int8 or fp32.")
    if requested == "int8" and not can_quantize(device):
        raise ValueError("precision int8 is for CPUs, by oneDNN's operators in torch; use bf16, fp16 or fp32.")
    if requested in ("bf16", "tf32") and device.type == "cuda" and not multiplies_bf16(device):
        raise ValueError(
            f"precision {requested} needs a GPU of compute capability 8.0 or more, and this one has "
            f"{_capability(device)}; use fp16 or fp32."
        )
    return requested, ""


def _choose_on_gpu(device: torch.device, drift: Callable[[str], float]) -> tuple[str, str]:
    """Return the 16-bit precision that moves the output least, or fp32, and a sentence with the measured drifts."""
    names = ("fp16", "bf16") if multiplies_bf16(device) else ("fp16",)
    drifts = {name: drift(name) for name in names}
    best = min(drifts, key=lambda name: drifts[name])
    figures = ", ".join(f"{name} moves its output by {value:.2g} of its size" for name, value in drifts.items())
    if not drifts[best] <= MOST_DRIFT:
        return "fp32", f"Precision fp32 was chosen since the network needs it: {figures}."
    return best, f"Precision {best} was chosen for compute capability {_capability(device)}: {figures}."


def _capability(device: torch.device) -> str:
    """Return the compute capability, as 8.0."""
    return ".".join(map(str, torch.cuda.get_device_capability(device)))


def measure_probe_drift(model: FasterRCNN, device: torch.device, dtype: torch.dtype, canvas: Canvas) -> float:
    """Measure on a synthetic image how far ``dtype`` moves the output of ``model``: see ``measure_drift``.

    model: in float32; it is moved to ``device``. canvas: height and width of the image.
    """
    batch = Transform(model.config.transform)([probe_image(canvas).numpy()], canvas, device)
    regions = random_regions(canvas, 100, device)
    with float32_products("fp32", device):
        return measure_drift(model.to(device), batch.pixels, regions, dtype)


@torch.inference_mode()
def measure_drift(model: FasterRCNN, pixels: Tensor, regions: Tensor, dtype: torch.dtype) -> float:
    """Return how far ``dtype`` moves the network's output: root mean square of the difference over that of float32.

    model: in float32, on the device of pixels, normalised float32 [1, 3, H, W]. regions: float32 [R, 5] of (0, box on
    the canvas). The largest of the RPN's and the RoI head's logits and offsets counts; inf where one is not finite.
    """
    cast = deepcopy(model).to(dtype).to(memory_format=torch.channels_last)
    largest = 0.0
    for exact, rounded in zip(_outputs(model, pixels, regions), _outputs(cast, pixels.to(dtype), regions), strict=True):
        share = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp(min=1e-12)
        if not bool(share.isfinite()):
            return float("inf")
        largest = max(largest, float(share))
    return largest


def _outputs(model: FasterRCNN, pixels: Tensor, regions: Tensor) -> list[Tensor]:
    """Return logits and offsets of the RPN and of the RoI head, float32, for pixels [1, 3, H, W] and regions [R, 5]."""
    output = model.run_convolutions(pixels)
    return [part.float() for part in (output.logits, output.deltas, *model.roi_heads(output.maps, regions))]


def probe_image(canvas: Canvas) -> Tensor:
    """Make an image to measure with, uint8 [H, W, 3]: smooth random blobs with fine noise, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, max(2, canvas[0] // 48), max(2, canvas[1] // 48), generator=generator)
    smooth = F.interpolate(coarse, size=canvas, mode="bilinear", align_corners=False)
    noisy = smooth + 0.1 * torch.rand(1, 3, *canvas, generator=generator)
    return (noisy.clamp(0, 1) * 255).byte()[0].permute(1, 2, 0).contiguous()


def random_regions(canvas: Canvas, count: int, device: torch.device) -> Tensor:
    """Make regions float32 [count, 5] of (0, box on the canvas) to measure with: the same at every call."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 4, generator=generator) * min(canvas) / 2
    return torch.cat((torch.zeros(count, 1), corners[:, :2], corners[:, :2] + corners[:, 2:] + 1), dim=1).to(device)


_cudnn: Any = torch.backends.cudnn  # torch's annotations do not know its parts
_cublas: Any = torch.backends.cuda.matmul


class _Float32Products:
    """The arithmetic of float32 products in cuDNN and cuBLAS, which torch can set for the whole process only.

    While detectors run it is "ieee" if one of them is in fp32, else "tf32"; afterwards it is as it was before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._before = ("none", "none")

    def enter(self, precision: str) -> None:
        """Note that a detector in ``precision`` begins to run."""
        with self._lock:
            if not self._running.total():
                self._before = (_cudnn.conv.fp32_precision, _cublas.fp32_precision)
            self._running[precision] += 1
            self._apply()

    def leave(self, precision: str) -> None:
        """Note that a detector in ``precision`` has run."""
        with self._lock:
            self._running[precision] -= 1
            self._apply()

    def _apply(self) -> None:
        """Set the arithmetic that the running detectors need."""
        if self._running.total():
            modes = ("ieee", "ieee") if self._running["fp32"] else ("tf32", "tf32")
        else:
            modes = self._before
        _cudnn.conv.fp32_precision, _cublas.fp32_precision = modes


_products = _Float32Products()


@contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """Multiply float32 within the block as ``precision`` says: exactly for fp32, in TF32 for tf32.

    By default cuDNN's convolutions use TF32, which is not exact. On a CPU, and for other precisions, nothing changes.
    """
    if device.type != "cuda" or precision not in ("fp32", "tf32"):
        yield
        return
    _products.enter(precision)
    try:
        yield
    finally:
        _products.leave(precision)
