"""How long each stage of a batch takes."""

from __future__ import annotations

import time

import torch


class Clock:
    """Seconds by stage. On a GPU a stage ends when the device has done it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """``stage`` ends here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[stage] = now - self.last
        self.last = now
