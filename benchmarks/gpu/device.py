"""Wait for the device, set its switches, and read its memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.lib import timing

MIB = 2**20
# Where torch keeps the precision of float32 products, in its newer interface.
_NEWER = ((torch.backends.cuda, "matmul"), (torch.backends.cudnn, "conv"), (torch.backends.cudnn, "rnn"))
Switches = tuple[Any, ...]


def wait(device: str) -> None:
    """Return when the device has finished all work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def time_call(call: Callable[[], object], device: str) -> float:
    """Return the seconds of one call, from an idle device to an idle device."""
    return timing.time_call(call, lambda: wait(device))


def switches() -> Switches:
    """Return how convolutions are chosen and float32 products are computed now, for ``restore``."""
    benchmark = torch.backends.cudnn.benchmark
    try:
        return (benchmark, "older", torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # the newer interface was used, and the two disagree
        return (benchmark, "newer", *(getattr(getattr(place, name), "fp32_precision", None) for place, name in _NEWER))


def restore(state: Switches) -> None:
    """Set what ``switches`` returned."""
    torch.backends.cudnn.benchmark, interface, *values = state
    if interface == "older":
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = values
        return
    for (place, name), value in zip(_NEWER, values, strict=True):
        if value is not None:
            getattr(place, name).fp32_precision = value


def restore_defaults() -> None:
    """Set torch's defaults: TensorFloat-32 in convolutions and not in products, and no trials of convolutions."""
    restore((False, "older", False, True))


def use_tf32(on: bool) -> None:
    """Allow TensorFloat-32 in all products and convolutions of float32, or in none."""
    restore((False, "older", on, on))


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Allow or forbid TensorFloat-32 within the block."""
    before = switches()
    use_tf32(on)
    try:
        yield
    finally:
        restore(before)


def reset_memory(device: str) -> None:
    """Return unused memory to the device, and count the peak anew."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> dict[str, float | None]:
    """Return the most MiB that were allocated and reserved since ``reset_memory``; None on a CPU."""
    if not device.startswith("cuda"):
        return {"allocated_mib": None, "reserved_mib": None}
    torch.cuda.synchronize()
    return {
        "allocated_mib": round(torch.cuda.max_memory_allocated() / MIB, 1),
        "reserved_mib": round(torch.cuda.max_memory_reserved() / MIB, 1),
    }
