"""Which form of RoIAlign the heads use on a GPU: the embedding bag on the table, or torchvision's operator.

On a CPU the embedding bag is faster by far, and nobody asks. On a GPU both are quick, and which is
quicker depends on the device, the type and the network: so both are timed there, once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.roi_head import RoIHead

_ROUNDS = 5


def choose(
    heads: RoIHead, maps: Sequence[Tensor], regions: Tensor, seconds: Callable[[Callable[[], object]], float]
) -> str:
    """Set ``heads`` to what is faster on these maps and regions, and say in a sentence which that is, and why.

    seconds: of one call, to its end on the device. An empty sentence where there is no choice.
    """
    if heads.config.pool == "max":
        return ""
    times: dict[bool, list[float]] = {False: [], True: []}
    for done in range(_ROUNDS + 1):
        for by_level, found in times.items():
            heads.by_level = by_level
            took = seconds(lambda: heads(maps, regions))
            if done:  # the first of each only warms up
                found.append(took)
    table, levels = (statistics.median(found) for found in times.values())
    heads.by_level = levels < table
    # Other work of this process may have been in the way: a number of each lets an operator judge.
    figures = f"heads with roi_align {levels * 1e3:.2f} ms, with the embedding bag {table * 1e3:.2f} ms"
    return f"Regions are pooled by {'roi_align' if heads.by_level else 'the embedding bag'} ({figures})."


def random_regions(canvas: tuple[int, int], count: int, device: torch.device) -> Tensor:
    """Make regions float32 [count, 5] of (0, box on the canvas) to time with: the same at every call."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 4, generator=generator) * min(canvas) / 2
    return torch.cat((torch.zeros(count, 1), corners[:, :2], corners[:, :2] + corners[:, 2:] + 1), dim=1).to(device)


def device_seconds(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """How to time a call on a GPU: between two moments at which the device has nothing to do."""

    def seconds(call: Callable[[], object]) -> float:
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began

    return seconds
