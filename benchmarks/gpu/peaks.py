"""What the device reaches at best, by a large product and a large copy, and how much arithmetic a network is."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import pairs
from benchmarks.gpu import device as devices
from benchmarks.gpu.images import Image
from benchmarks.gpu.settings import Settings

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
_CALLS = 5


def measure(settings: Settings, _: float) -> dict[str, Any]:
    """Operations a second of a square product in each precision, and bytes a second of a copy, read and written."""
    side = 256 if settings.tiny else 8192
    products = {}
    for name in ("fp32",) if settings.tiny else _TYPES:
        with devices.tf32(name == "tf32"):
            factor = torch.randn(side, side, device=settings.device, dtype=_TYPES[name])
            seconds = _median(lambda factor=factor: factor @ factor, settings.device)  # type: ignore[misc]
            products[name] = {"tflops": 2 * side**3 / seconds / 1e12, "ms": seconds * 1000}
            del factor
    count = 2**20 if settings.tiny else 2**31
    source = torch.empty(count, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    seconds = _median(lambda: target.copy_(source), settings.device)
    return {"side": side, "products": products, "copy_gb_per_s": 2 * count / seconds / 1e9, "copy_bytes": count}


def _median(call: Any, device: str) -> float:
    """Seconds of a call."""
    for _ in range(3):
        call()
    taken = []
    for _ in range(_CALLS):
        devices.wait(device)
        begun = time.perf_counter()
        call()
        devices.wait(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


_COUNTED: dict[tuple[str, tuple[int, ...]], int] = {}


def flops(preset: str, image: Image) -> int:
    """What torch counts for the network on one image: multiplications and additions each one. Counted once, on a CPU.

    Of torchvision's detector, since the counter does not know the operators that ours is made of on CPUs.
    """
    key = (preset, image.shape)
    if key not in _COUNTED:
        _COUNTED[key] = _count(preset, image)
    return _COUNTED[key]


def _count(preset: str, image: Image) -> int:
    model = pairs.in_torchvision(preset)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model([tensor])
    return counter.get_total_flops()
