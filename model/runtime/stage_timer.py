"""How long each stage of a batch takes."""

from __future__ import annotations

import time
from itertools import pairwise

import torch


class StageTimer:
    """Measures seconds by stage.

    On a GPU a stage ends when the device has done it; nothing but ``seconds`` waits for that.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stages: list[str] = []
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self._record()

    def mark(self, stage: str) -> None:
        """``stage`` ends here."""
        self._stages.append(stage)
        self._record()

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in their order; on a GPU once the last stage is done there. Read it at the end."""
        if self._events:
            self._events[-1].synchronize()
            durations = [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._events)]
        else:
            durations = [after - before for before, after in pairwise(self._times)]
        return dict(zip(self._stages, durations, strict=True))

    def _record(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            # The stream of our device, which need not be the thread's current one.
            event.record(torch.cuda.current_stream(self.device))
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())
