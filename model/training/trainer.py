"""Train one model step by step, with checkpoints from which a run continues as if it had never stopped.

A step is determined by (seed, step) alone: its batch, its augmentation, its samplers and its dropout draw from
generators that are seeded with them. So a checkpoint holds tensors and a step number, and no generator's state. Where
several processes share the steps, each takes its part of the batch, and the gradients are summed (``distributed.py``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import DetectorConfig
from model.data import Dataset
from model.faster_rcnn import FasterRCNN
from model.structures import ImageBatch
from model.training.batches import Batches, TrainBatch, prefetch
from model.training.config import TrainingConfig, TrainingError, learning_rate_factor
from model.training.distributed import Processes
from model.training.losses import Losses, Objective, joint_losses
from model.training.targets import Truth
from model.transform import Transform, clear_padding


def to_truths(batch: TrainBatch, device: torch.device | None = None) -> list[Truth]:
    """Return the ground truth of each image of a batch, canvas frame, with ignored boxes apart."""
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
    """Normalise the pixels of a training batch, and set them to zero outside each image as at inference.

    The original size of each image is set to its size on the canvas, because augmentation leaves no single scale
    between the two. So the paper's smallest proposal, 16 pixels of the original image, is 16 pixels of the canvas here.
    """
    pixels = transform.normalise(batch.pixels.to(device).float())
    clear_padding(pixels, [(height, width) for height, width in batch.sizes.tolist()])
    return ImageBatch(pixels.contiguous(memory_format=torch.channels_last), batch.sizes, batch.sizes)


class Trainer:
    """A model, its averaged weights and its optimiser, at a step of a run.

    objective: the losses to minimise; parameters that they do not depend on belong into ``config.frozen``.
    processes: the processes that share the steps; ``config.batch_size`` counts the images of all of them together.

    Raises ``TrainingError`` where model, data, batch size and processes do not go together.
    """

    def __init__(
        self,
        model: FasterRCNN,
        dataset: Dataset,
        config: TrainingConfig,
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
        if config.batch_size < self.processes.world:
            raise TrainingError(
                f"A batch of {config.batch_size} images leaves some of {self.processes.world} processes without one."
            )
        if self.processes.world > 1 and any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
            raise TrainingError(
                f"{model.config.name} has batch norms, whose statistics several processes would each take from their "
                "own images: train it in one process, or take a preset whose norms are frozen."
            )
        self.device = device or torch.device("cpu")
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dataset = dataset
        self.config = config
        self.objective = objective
        self.transform = Transform(model.config.transform)
        self.step = 0
        frozen = config.frozen_prefixes(model.config.backbone)
        names = [name for name, _ in model.named_parameters()]
        unused = [prefix for prefix in config.frozen or () if not any(name.startswith(prefix) for name in names)]
        if unused:
            raise TrainingError(f"No parameter of {model.config.name} begins with {', '.join(unused)}: mend `frozen`.")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self._groups(), weight_decay=config.weight_decay, fused=True)
        self.average: list[Tensor] = []
        self.reset_average()

    def reset_average(self) -> None:
        """Restart the average from the model's weights, those of the first process, after others were loaded."""
        self.processes.broadcast_weights(self.model)
        self.average = [parameter.detach().clone() for parameter in self.trained]

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps of one pass over the data."""
        return len(self._batches(0))

    @property
    def steps(self) -> int:
        """Return the steps of the whole run."""
        return round(self.config.epochs * self.steps_per_epoch)

    def run(self, report: Callable[[int, Losses], None] | None = None, until: int | None = None) -> None:
        """Train up to step ``until`` (the end by default); ``report`` is called with the step and losses after each."""
        end = self.steps if until is None else min(until, self.steps)
        self.model.train()
        for module in self.model.modules():
            # In training mode a norm with frozen weights would still update its statistics.
            if isinstance(module, torch.nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        for batch in self._stream(end):
            losses = self._train_step(batch)
            self.step += 1
            if report is not None:
                report(self.step, losses)

    def averaged_state(self) -> dict[str, Tensor]:
        """Return the model's state dict with the averaged weights instead of the trained ones."""
        state = dict(self.model.state_dict())
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        return state | dict(zip(names, self.average, strict=True))

    def save(self, path: Path) -> None:
        """Write a checkpoint to continue from; the file is replaced whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "recipe": json.dumps(asdict(self.config)),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of ``save``; raise ``TrainingError`` for one of another model or optimiser."""
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError, OSError, EOFError) as error:
            raise TrainingError(
                f"{path} cannot be resumed: {error}. Start afresh in another folder, or with the recipe that wrote it."
            ) from error
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)
        self.step = int(state["step"])

    def _groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups: the parameters of the body, and all others, each with its peak rate."""
        body: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (body if name.startswith("backbone.body.") else rest).append(parameter)
        groups = [
            {"params": body, "peak": self.config.body_lr, "lr": 0.0},
            {"params": rest, "peak": self.config.lr, "lr": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def _batches(self, epoch: int) -> Batches:
        """Return this process's batches of an epoch."""
        canvas, augment = self.config.epoch_settings(epoch)
        mean = self.model.config.transform.mean
        filler = (round(mean[0] * 255), round(mean[1] * 255), round(mean[2] * 255))
        return Batches(
            self.dataset,
            canvas,
            self.config.batch_size,
            augment,
            self.config.seed,
            epoch=epoch,
            filler=filler,
            rank=self.processes.rank,
            world=self.processes.world,
        )

    def _stream(self, end: int) -> Iterator[TrainBatch]:
        """Yield the batches from the current step to ``end``."""
        step = self.step
        while step < end:
            epoch, start = divmod(step, self.steps_per_epoch)
            for batch in prefetch(self._batches(epoch), start):
                yield batch
                step += 1
                if step == end:
                    return

    def _train_step(self, batch: TrainBatch) -> Losses:
        """Update weights and average by one step; return its losses."""
        factor = learning_rate_factor(self.config, self.step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        losses = self.compute_gradients(batch)
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip)
        self.optimiser.step()
        # A lower decay at first, or the initial weights would stay in the average for thousands of steps.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.trained], 1 - decay)
        return losses

    def compute_gradients(self, batch: TrainBatch) -> Losses:
        """Compute the whole batch's gradients into the parameters, and return its losses.

        batch: this process's part of the current step's batch. Every process ends with the same gradients, those that
        one process would have from the whole batch, to the rounding of a sum: losses are divided by the samples of all
        processes, each image draws its samples from a generator of its own, and gradients are added up. Only dropout
        differs, because its masks belong to rows and not to images. Raises ``TrainingError`` for a loss that is not
        finite.
        """
        step_seed = self.config.seed * 1_000_003 + self.step
        torch.manual_seed(step_seed + self.processes.rank * 7_919)
        # An image's samples depend on its position in the batch of all processes.
        generators = [
            torch.Generator().manual_seed((step_seed << 16) + position)
            for position in self.processes.positions(self.config.batch_size)
        ]
        images, truths = to_image_batch(batch, self.transform, self.device), to_truths(batch, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            losses = self.objective(self.model, images, truths, generators, self.processes.total)
        batch_losses = self.processes.sum_losses(losses)
        if not torch.isfinite(batch_losses.total()):
            raise TrainingError(
                f"The loss is {batch_losses.total().item()} at step {self.step}, on images {batch.indices.tolist()}: "
                "lower the learning rate, or look at these images' boxes."
            )
        self.optimiser.zero_grad(set_to_none=True)
        losses.total().backward()
        self.processes.sum_gradients(self.trained)
        return batch_losses


def new_model(config: DetectorConfig, seed: int = 0) -> FasterRCNN:
    """Return a detector with random weights that the seed determines."""
    torch.manual_seed(seed)
    return FasterRCNN(config)
