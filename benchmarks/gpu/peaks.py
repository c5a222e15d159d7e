"""Measure what the device reaches in a large product and a large copy, and count a network's arithmetic."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import device as devices
from benchmarks.gpu.settings import Settings
from benchmarks.lib import models, timing
from model.structures import ImageArray

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
_CALLS = 5


def measure(settings: Settings, _: float) -> dict[str, Any]:
    """Return operations a second of a square product in each precision, and bytes a second of a copy."""
    side = 256 if settings.tiny else 8192

    def median_seconds(call: Any) -> float:
        return statistics.median(timing.repeat(call, _CALLS, warm_up=3, wait=lambda: devices.wait(settings.device)))

    products = {}
    for name in ("fp32",) if settings.tiny else _TYPES:
        with devices.tf32(name == "tf32"):
            factor = torch.randn(side, side, device=settings.device, dtype=_TYPES[name])
            seconds = median_seconds(partial(torch.matmul, factor, factor))
            products[name] = {"tflops": 2 * side**3 / seconds / 1e12, "ms": seconds * 1000}
            del factor
    count = 2**20 if settings.tiny else 2**31
    source = torch.empty(count, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source))
    return {"side": side, "products": products, "copy_gb_per_s": 2 * count / seconds / 1e9, "copy_bytes": count}


_COUNTED: dict[tuple[str, tuple[int, ...]], int] = {}


def flops(preset: str, image: ImageArray) -> int:
    """Return what torch counts for the network on one image, a multiplication and an addition as two.

    Counted once, on a CPU, in torchvision's detector: the counter does not know the operators of ours on CPUs.
    """
    key = (preset, image.shape)
    if key not in _COUNTED:
        _COUNTED[key] = _count(preset, image)
    return _COUNTED[key]


def _count(preset: str, image: ImageArray) -> int:
    model = models.torchvision_detector(preset)
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model([tensor])
    return counter.get_total_flops()
