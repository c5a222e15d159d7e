"""The device: waiting for it, its switches, and its memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

MIB = 2**20
# Where torch keeps the precision of float32 products, in its newer interface.
_NEWER = ((torch.backends.cuda, "matmul"), (torch.backends.cudnn, "conv"), (torch.backends.cudnn, "rnn"))
Switches = tuple[Any, ...]


def wait(device: str) -> None:
    """Return when the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def switches() -> Switches:
    """How convolutions are chosen, and how products of float32 are computed, now: for ``restore``."""
    chosen = torch.backends.cudnn.benchmark
    try:
        return (chosen, "older", torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # somebody has used the newer interface, and the two disagree
        return (chosen, "newer", *(getattr(getattr(place, name), "fp32_precision", None) for place, name in _NEWER))


def restore(state: Switches) -> None:
    """Set what ``switches`` has returned."""
    torch.backends.cudnn.benchmark, interface, *values = state
    if interface == "older":
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = values
        return
    for (place, name), value in zip(_NEWER, values, strict=True):
        if value is not None:
            getattr(place, name).fp32_precision = value


def defaults() -> None:
    """Set what torch begins with: TensorFloat-32 in convolutions and not in products, and no trials of convolutions."""
    restore((False, "older", False, True))


def use_tf32(on: bool) -> None:
    """Allow TensorFloat-32 in all products and convolutions of float32, or in none."""
    restore((False, "older", on, on))


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """The same for a while."""
    before = switches()
    use_tf32(on)
    try:
        yield
    finally:
        restore(before)


def forget(device: str) -> None:
    """Give back what is unused, and count the peak of the memory anew."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> dict[str, float | None]:
    """The most that was allocated, and reserved, since ``forget``, in MiB; of None on a CPU."""
    if not device.startswith("cuda"):
        return {"allocated_mib": None, "reserved_mib": None}
    torch.cuda.synchronize()
    return {
        "allocated_mib": round(torch.cuda.max_memory_allocated() / MIB, 1),
        "reserved_mib": round(torch.cuda.max_memory_reserved() / MIB, 1),
    }
