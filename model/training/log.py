"""Write a run's losses to a file while it trains."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from model.training.losses import Losses
from model.training.trainer import Trainer


class LossLog:
    """A file of JSON lines, one every so many steps, with the mean of each loss since the last line."""

    def __init__(self, path: Path, trainer: Trainer, every: int = 50) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.trainer = trainer
        self.every = every
        self.losses: list[Losses] = []
        self.since = time.perf_counter()

    def __call__(self, step: int, losses: Losses) -> dict[str, float] | None:
        """Add one step's losses; return the line where one was written, None otherwise."""
        self.losses.append(losses)
        if step % self.every and step != self.trainer.steps:
            return None
        means = torch.stack([torch.stack(list(losses)) for losses in self.losses]).mean(dim=0).tolist()
        now = time.perf_counter()
        images = len(self.losses) * self.trainer.config.batch_size
        line = {
            "step": step,
            "epoch": round(step / self.trainer.steps_per_epoch, 3),
            **{name: round(value, 4) for name, value in zip(Losses._fields, means, strict=True)},
            "seconds_per_image": round((now - self.since) / images, 4),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.losses, self.since = [], now
        return line
