"""The duration of each stage of a batch."""

from __future__ import annotations

import time
from itertools import pairwise

import torch


class StageTimer:
    """Measure the stages of a batch, from its creation on.

    On a GPU a stage ends when the device has done its work. ``mark`` does not wait for that: only ``seconds`` does.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stages: list[str] = []
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self._record()

    def mark(self, stage: str) -> None:
        """Mark the end of ``stage``, which began at the mark before."""
        self._stages.append(stage)
        self._record()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage, in their order; on a GPU wait until the last one is done there."""
        if self._events:
            self._events[-1].synchronize()
            durations = [start.elapsed_time(end) / 1e3 for start, end in pairwise(self._events)]
        else:
            durations = [end - start for start, end in pairwise(self._times)]
        return dict(zip(self._stages, durations, strict=True))

    def _record(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            # The stream of this device, which need not be the thread's current one.
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())
