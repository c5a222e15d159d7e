"""Settings of a training run, and its learning rate by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from model.backbones import BACKBONES
from model.training.augment import AugmentConfig


class TrainingError(RuntimeError):
    """Training cannot start or continue; the message says why and what to do."""


@dataclass(frozen=True)
class Finish:
    """Settings of the last epochs: most of a run uses small canvases, which are cheap, and the end the size of serving.

    epochs: how many of the run's, whole ones. canvas, augment: as in ``TrainingConfig``.
    """

    epochs: int
    canvas: tuple[int, int]
    augment: AugmentConfig


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training run; a recipe (weights/recipes/*.json) has these fields.

    epochs: passes over the data; a fraction is allowed. batch_size: images in a step.
    lr: AdamW's peak learning rate; body_lr: the same for the backbone's body. warmup: steps of linear rise from 0, then
    a half cosine down to ``lr_end`` of the peak.
    clip: largest gradient norm. ema: decay of the averaged weights, which are the ones that are saved for serving.
    frozen: prefixes of the parameters that keep their values; None for the backbone's first stages, as its entry in
        ``model.backbones.BACKBONES`` names them.
    canvas: (height, width) of landscape images while training.
    finish: settings of the last epochs; None where they are as all others.
    bf16: autocast the convolutions and matrix products; faster where the processor has AMX, slower where not.

    Raises ``ValueError`` that names what is out of range.
    """

    epochs: float = 7.0
    batch_size: int = 16
    lr: float = 5e-4
    body_lr: float = 2e-4
    weight_decay: float = 1e-2
    warmup: int = 200
    lr_end: float = 0.01
    clip: float = 5.0
    ema: float = 0.998
    frozen: tuple[str, ...] | None = None
    canvas: tuple[int, int] = (288, 384)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    finish: Finish | None = None
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        above_zero, from_zero = ("epochs", "batch_size", "clip"), ("lr", "body_lr", "weight_decay", "warmup", "seed")
        wrong = [name for name in above_zero if not 0 < getattr(self, name) < math.inf]
        wrong += [name for name in from_zero if not 0 <= getattr(self, name) < math.inf]
        wrong += [name for name in ("lr_end", "ema") if not 0 <= getattr(self, name) <= 1]
        if wrong:
            raise ValueError(", ".join(f"{name} cannot be {getattr(self, name)}" for name in wrong))
        if min(self.canvas) < 1:
            raise ValueError(f"canvas cannot be {self.canvas}")
        if self.finish is not None and not (0 < self.finish.epochs <= self.epochs == int(self.epochs)):
            raise ValueError(f"a finish of {self.finish.epochs} epochs needs whole epochs in all, not {self.epochs}")

    def frozen_prefixes(self, backbone: str) -> tuple[str, ...]:
        """Return the prefixes of the parameters that keep their values in a detector with this backbone."""
        if self.frozen is not None:
            return self.frozen
        return tuple(f"backbone.body.{prefix}" for prefix in BACKBONES[backbone].frozen)

    def epoch_settings(self, epoch: int) -> tuple[tuple[int, int], AugmentConfig]:
        """Return the canvas and the augmentation of a 0-based epoch."""
        if self.finish is not None and epoch >= self.epochs - self.finish.epochs:
            return self.finish.canvas, self.finish.augment
        return self.canvas, self.augment


def learning_rate_factor(config: TrainingConfig, step: int, steps: int) -> float:
    """Return the share of the peak learning rate at 0-based ``step`` of ``steps``."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
