"""What a run writes down while it trains."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from model.training.losses import Losses
from model.training.trainer import Trainer


class Log:
    """A run's losses, one JSON line every so many steps: the mean of each loss since the last line."""

    def __init__(self, path: Path, trainer: Trainer, every: int = 50) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.trainer = trainer
        self.every = every
        self.losses: list[Losses] = []
        self.since = time.perf_counter()

    def __call__(self, step: int, losses: Losses) -> dict[str, float] | None:
        """Take one step's losses; returns what was written, if something was."""
        self.losses.append(losses)
        if step % self.every and step != self.trainer.steps:
            return None
        means = torch.stack([torch.stack(list(item)) for item in self.losses]).mean(dim=0).tolist()
        now = time.perf_counter()
        pictures = len(self.losses) * self.trainer.recipe.batch_size
        line = {
            "step": step,
            "epoch": round(step / self.trainer.steps_per_epoch, 3),
            **{name: round(value, 4) for name, value in zip(Losses._fields, means, strict=True)},
            "seconds_per_picture": round((now - self.since) / pictures, 4),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.losses, self.since = [], now
        return line
