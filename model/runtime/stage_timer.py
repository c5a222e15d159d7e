"""How long each stage of a batch takes."""

from __future__ import annotations

import time
from itertools import pairwise

import torch


class Clock:
    """Seconds by stage. On a GPU a stage ends when the device has done it, and nothing waits for that but ``laps``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stages: list[str] = []
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self._mark()

    def lap(self, stage: str) -> None:
        """``stage`` ends here."""
        self._stages.append(stage)
        self._mark()

    def laps(self) -> dict[str, float]:
        """Seconds by stage, in their order; on a GPU once the last stage is done there. Read it at the end."""
        if self._events:
            self._events[-1].synchronize()
            seconds = [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._events)]
        else:
            seconds = [after - before for before, after in pairwise(self._times)]
        return dict(zip(self._stages, seconds, strict=True))

    def _mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            # The stream of our device, which need not be the thread's current one.
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())
