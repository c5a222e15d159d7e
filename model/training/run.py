"""Run a whole training, from a data set to a checkpoint that serves, as ``frcnn train`` does.

A run's files are in one folder:

    checkpoint.pt       to continue from
    log.jsonl           the losses, a line every 50 steps
    recipe.json         the ``TrainingConfig`` and the schedule
    model.safetensors   the averaged weights, with their classes and validation metrics; written at the end

Alternating training keeps a checkpoint and a log for each of its four steps, in a folder each. Where several processes
share a run (``distributed.py``), the first one writes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from model.checkpoint import save
from model.data import DataError, Dataset, load_dataset, split
from model.detector import Detector
from model.evaluation.coco import Evaluation, evaluate_detector
from model.faster_rcnn import FasterRCNN
from model.presets import find_preset
from model.runtime.device import choose_device
from model.training.alternating import Schedule, TrainingStage, training_stages
from model.training.config import TrainingConfig, TrainingError
from model.training.distributed import Processes
from model.training.initial_weights import initialise_weights
from model.training.log import LossLog
from model.training.losses import Losses, Objective
from model.training.trainer import Trainer, new_model


def train(
    data: str | Path,
    out: Path,
    *,
    preset: str = "LITE",
    start: str = "imagenet",
    config: TrainingConfig | None = None,
    schedule: Schedule = "joint",
    device: str = "cpu",
    validation: float = 0.05,
    skip_bad_boxes: bool = False,
    console: Console | None = None,
) -> Evaluation | None:
    """Train a detector, or continue the run in ``out``; return the evaluation on the validation part.

    data: a folder of COCO json or VOC xml as ``load_dataset`` reads it; its split ``train``.
    start: the initial weights, as ``initialise_weights`` takes them.
    schedule: ``joint``, or ``alternating``, the paper's four steps, which share the epochs.
    device: ``cpu``, ``cuda`` or ``auto``; under torchrun each process takes the GPU of its own number.
    validation: the share of the training images set aside, by the seed; 0 for none, and then None is returned.

    Raises ``TrainingError``, ``DataError``, ``CheckpointError``, ``DeviceError``, or ``ValueError`` for an
    unknown preset.
    """
    config, console = config or TrainingConfig(), console or Console()
    if schedule == "alternating" and config.finish is not None:
        raise TrainingError(
            "A finish belongs to the end of joint training, and each of the four steps has an end of its own: "
            "leave the finish out."
        )
    train_device = choose_device(device)
    processes = Processes.join(train_device)
    if train_device.type == "cuda" and processes.world > 1:
        train_device = choose_device(f"cuda:{processes.local}")
    if not processes.first:
        console = Console(quiet=True)
    dataset = load_dataset(data, "train", on_bad_box="skip" if skip_bad_boxes else "error")
    dataset.check_images()
    _check_classes(dataset, data)
    if dataset.skipped:
        console.print(f"{len(dataset.skipped)} boxes skipped: {'; '.join(dataset.skipped[:10])}")
    validation_part = None
    if validation > 0:
        dataset, validation_part = split(dataset, validation, config.seed)
    if processes.first:
        _check_recipe(out, config, schedule)
    processes.wait()

    def initial_model() -> FasterRCNN:
        model = new_model(find_preset(preset).with_classes(len(dataset.classes)), config.seed)
        console.print(initialise_weights(model, start))
        return model

    def make_trainer(model: FasterRCNN, stage_config: TrainingConfig, objective: Objective) -> Trainer:
        return Trainer(model, dataset, stage_config, objective=objective, processes=processes, device=train_device)

    state: dict[str, Tensor] = {}
    for stage in training_stages(schedule, config, initial_model, make_trainer):
        _run_stage(stage, out / stage.name, console)
        state = stage.trainer.averaged_state()
    if not processes.first:
        return None

    file = out / "model.safetensors"
    save(file, state, preset=preset, classes=dataset.classes, metrics={})
    if validation_part is None:
        return None
    detector = Detector.from_checkpoint(file, device=str(train_device), precision="fp32")
    evaluation = evaluate_detector(detector, validation_part, progress=console.is_terminal)
    metrics = {"validation_ap": evaluation.ap, "validation_ap50": evaluation.ap50}
    save(file, state, preset=preset, classes=dataset.classes, metrics=metrics)
    console.print(evaluation.table())
    console.print(f"Serve it: FRCNN_WEIGHTS={file} frcnn serve")
    return evaluation


def _check_classes(dataset: Dataset, data: str | Path) -> None:
    """Raise ``DataError`` for a class without a box to learn from, which would be noticed only after hours."""
    present = {int(class_id) for sample in dataset.samples for class_id in sample.class_ids[~sample.ignore]}
    absent = [name for i, name in enumerate(dataset.classes) if i and i not in present]
    if absent:
        raise DataError(
            [f"{data}: no box of class {name!r} in train; add images of it, or take it off the list" for name in absent]
        )


def _check_recipe(out: Path, config: TrainingConfig, schedule: Schedule) -> None:
    """Write recipe.json, and refuse to continue a run whose own differs in more than the number of epochs."""
    file = out / "recipe.json"
    recipe: dict[str, Any] = json.loads(json.dumps({"schedule": schedule} | asdict(config)))
    if any(out.glob("**/checkpoint.pt")) and file.exists():
        previous = {"schedule": "joint"} | json.loads(file.read_text())
        changed = [key for key in recipe if key != "epochs" and recipe[key] != previous.get(key)]
        if changed:
            raise TrainingError(
                f"The run in {out} was started with another {', '.join(changed)}: continue with the same, or choose "
                "another folder."
            )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(recipe, indent=1) + "\n")


def _run_stage(stage: TrainingStage, folder: Path, console: Console) -> None:
    """Train a stage to its end, from where it stopped."""
    trainer, first = stage.trainer, stage.trainer.processes.first
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
        console.print(f"Going on from step {trainer.step} of {trainer.steps}.")
    trainer.processes.wait()
    name = stage.name or "training"
    console.print(f"{name}: {len(trainer.dataset)} images, {trainer.steps} steps of {trainer.config.batch_size}.")
    log = LossLog(folder / "log.jsonl", trainer)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=trainer.steps, completed=trainer.step)

        def report(step: int, losses: Losses) -> None:
            if not first:
                return
            line = log(step, losses)
            bar.update(task, completed=step)
            if line is not None and not console.is_terminal:
                console.print(json.dumps(line), soft_wrap=True)
            if step % 200 == 0:
                trainer.save(checkpoint)

        trainer.run(report)
    if first:
        trainer.save(checkpoint)
