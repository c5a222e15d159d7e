"""Training, from a recipe, with checkpoints from which a run goes on as if it had never stopped.

A step is determined by (seed, step) alone: its batch, its augmentation, its samplers and its dropout draw from
generators that are seeded with them. So a checkpoint holds tensors and a step number, and no generator's state. Where
several processes share the steps, each takes its part of the batch, and the gradients are summed (``processes.py``).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import DetectorConfig
from model.faster_rcnn import FasterRCNN
from model.structures import ImageBatch
from model.training.augment import AugmentConfig, Batches, TrainBatch, prefetch
from model.training.data import Dataset
from model.training.distributed import Processes
from model.training.losses import Losses, Objective, joint_losses
from model.training.targets import Truth
from model.transform import Transform, clear_padding


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Finish:
    """How the last epochs differ: most of a run sees small canvases, which are cheap, and the end the size of serving.

    epochs: how many of the recipe's, whole ones. canvas, augment: as the recipe's own.
    """

    epochs: int
    canvas: tuple[int, int]
    augment: AugmentConfig


@dataclass(frozen=True)
class Recipe:
    """How to train.

    epochs: passes over the data; a fraction is allowed. batch_size: pictures a step.
    lr: AdamW's peak learning rate; body_lr: the same for the backbone's body. warmup: steps of linear rise from 0;
    then a half cosine down to ``lr_end`` of the peak.
    clip: largest gradient norm. ema: decay of the averaged weights, which are the ones that ship.
    frozen: parameters whose name starts with one of these keep their values (P 3.1.3 freezes the first stages).
    canvas: (height, width) of landscape pictures while training.
    finish: what the last epochs do otherwise; None for nothing.
    bf16: autocast the convolutions and matrix products; pays where the processor has AMX, costs where not.

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
    frozen: tuple[str, ...] = ("backbone.body.stem", "backbone.body.stages.0", "backbone.body.stages.1")
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

    def look(self, epoch: int) -> tuple[tuple[int, int], AugmentConfig]:
        """The canvas and the augmentation of a 0-based epoch."""
        if self.finish is not None and epoch >= self.epochs - self.finish.epochs:
            return self.finish.canvas, self.finish.augment
        return self.canvas, self.augment


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """The share of the peak learning rate at 0-based ``step`` of ``steps``."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, steps - recipe.warmup)
    return recipe.lr_end + (1 - recipe.lr_end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def to_truths(batch: TrainBatch, device: torch.device | None = None) -> list[Truth]:
    """The labels of a training batch, canvas frame, ignored boxes apart."""
    return [
        Truth(
            boxes[~ignore].to(device),
            class_ids[~ignore].to(device),
            boxes[ignore].to(device),
            (int(size[0]), int(size[1])),
        )
        for boxes, class_ids, ignore, size in zip(batch.boxes, batch.class_ids, batch.ignore, batch.sizes, strict=True)
    ]


def to_image_batch(batch: TrainBatch, transform: Transform, device: torch.device | None = None) -> ImageBatch:
    """The pixels of a training batch, normalised, zero outside each picture as at inference.

    A picture's size on the canvas stands for its own too: augmentation has left no single scale between the two. So the
    paper's smallest proposal, 16 pixels of the picture, is 16 of the canvas here.
    """
    pixels = transform.normalise(batch.pixels.to(device).float())
    clear_padding(pixels, [(height, width) for height, width in batch.sizes.tolist()])
    return ImageBatch(pixels.contiguous(memory_format=torch.channels_last), batch.sizes, batch.sizes)


class Trainer:
    """A model, its averaged weights and its optimiser, at a step of a recipe.

    objective: what is learnt; parameters that it does not reach belong into ``recipe.frozen``.
    processes: who shares the steps; ``recipe.batch_size`` counts the pictures of all of them together.
    """

    def __init__(
        self,
        model: FasterRCNN,
        dataset: Dataset,
        recipe: Recipe,
        *,
        objective: Objective = joint_losses,
        processes: Processes | None = None,
        device: torch.device | None = None,
    ) -> None:
        if len(dataset.classes) != model.config.num_classes:
            raise TrainingError(
                f"The model has {model.config.num_classes} classes with background, the data {len(dataset.classes)}."
            )
        self.processes = processes or Processes()
        if recipe.batch_size < self.processes.world:
            raise TrainingError(
                f"A batch of {recipe.batch_size} pictures leaves some of {self.processes.world} processes without one."
            )
        if self.processes.world > 1 and any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
            raise TrainingError(
                f"{model.config.name} has batch norms, whose statistics several processes would each take from their "
                "own pictures: train it in one process, or take a preset whose norms are frozen."
            )
        self.device = device or torch.device("cpu")
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dataset = dataset
        self.recipe = recipe
        self.objective = objective
        self.transform = Transform(model.config.transform)
        self.step = 0
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(recipe.frozen))
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self._groups(), weight_decay=recipe.weight_decay, fused=True)
        self.average: list[Tensor] = []
        self.reset_average()

    def reset_average(self) -> None:
        """Begin the average anew from the model's weights, in all processes alike: after others were put into it."""
        self.processes.agree(self.model)
        self.average = [parameter.detach().clone() for parameter in self.trained]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the data."""
        return len(self._batches(0))

    @property
    def steps(self) -> int:
        """Steps of the whole recipe."""
        return round(self.recipe.epochs * self.steps_per_epoch)

    def run(self, report: Callable[[int, Losses], None] | None = None, until: int | None = None) -> None:
        """Train up to step ``until`` (the recipe's end by default); ``report`` is called after each step."""
        end = self.steps if until is None else min(until, self.steps)
        self.model.train()
        for module in self.model.modules():
            # In training mode a norm that learns nothing would still move its statistics.
            if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        for batch in self._stream(end):
            losses = self._train_step(batch)
            self.step += 1
            if report is not None:
                report(self.step, losses)

    def averaged_state(self) -> dict[str, Tensor]:
        """The model's state dict with the averaged weights in the place of the trained ones."""
        state = dict(self.model.state_dict())
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        return state | dict(zip(names, self.average, strict=True))

    def save(self, path: Path) -> None:
        """Write a checkpoint to go on from; the file is replaced whole or not at all."""
        recipe = asdict(self.recipe)
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "recipe": json.dumps(recipe),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint of ``save``; raises ``TrainingError`` for one that another model or data wrote."""
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError, OSError, EOFError) as error:
            raise TrainingError(
                f"{path} cannot be resumed: {error}. Start afresh in another folder, or with the recipe that wrote it."
            ) from error
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)
        self.step = int(state["step"])

    def _groups(self) -> list[dict[str, Any]]:
        body: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (body if name.startswith("backbone.body.") else rest).append(parameter)
        groups = [
            {"params": body, "peak": self.recipe.body_lr, "lr": 0.0},
            {"params": rest, "peak": self.recipe.lr, "lr": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def _batches(self, epoch: int) -> Batches:
        recipe = self.recipe
        canvas, augment = recipe.look(epoch)
        mean = self.model.config.transform.mean
        filler = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255))
        return Batches(
            self.dataset,
            canvas,
            recipe.batch_size,
            augment,
            recipe.seed,
            epoch=epoch,
            filler=filler,
            rank=self.processes.rank,
            world=self.processes.world,
        )

    def _stream(self, end: int) -> Iterator[TrainBatch]:
        """Batches from the current step to ``end``."""
        step = self.step
        while step < end:
            epoch, start = divmod(step, self.steps_per_epoch)
            for batch in prefetch(self._batches(epoch), start):
                yield batch
                step += 1
                if step == end:
                    return

    def _train_step(self, batch: TrainBatch) -> Losses:
        recipe = self.recipe
        share = rate(recipe, self.step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share
        losses = self.gradients(batch)
        torch.nn.utils.clip_grad_norm_(self.trained, recipe.clip)
        self.optimiser.step()
        # Young averages forget faster, or the first weights would stay in them for thousands of steps.
        decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.trained], 1 - decay)
        return losses

    def gradients(self, batch: TrainBatch) -> Losses:
        """Put the whole batch's gradients into the parameters, and return its losses.

        batch: this process's part of the current step's batch. Every process ends with the same gradients, those that
        one process would have from the whole batch, to the rounding of a sum: losses are divided by what all of them
        sampled, each picture draws its samples from a generator of its own, and gradients are added up. Dropout alone
        draws differently, for masks belong to rows and not to pictures.
        """
        step_seed = self.recipe.seed * 1_000_003 + self.step
        torch.manual_seed(step_seed + self.processes.rank * 7_919)
        # A picture's samples depend on its place in the batch of all processes.
        generators = [
            torch.Generator().manual_seed((step_seed << 16) + position)
            for position in self.processes.positions(self.recipe.batch_size)
        ]
        images, truths = to_image_batch(batch, self.transform, self.device), to_truths(batch, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            losses = self.objective(self.model, images, truths, generators, self.processes.total)
        whole = self.processes.sum_losses(losses)
        if not torch.isfinite(whole.total()):
            raise TrainingError(
                f"The loss is {whole.total().item()} at step {self.step}, on pictures {batch.indices.tolist()}: "
                "lower the learning rate, or look at these pictures' boxes."
            )
        self.optimiser.zero_grad(set_to_none=True)
        losses.total().backward()
        self.processes.sum_gradients(self.trained)
        return whole


def new_model(config: DetectorConfig, seed: int = 0) -> FasterRCNN:
    """A detector with fresh weights that the seed determines."""
    torch.manual_seed(seed)
    return FasterRCNN(config)
