"""``frcnn train`` and ``frcnn evaluate``. What they need beyond the service is imported when they run."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


class Schedule(StrEnum):
    """What is trained when (P 3.2)."""

    joint = "joint"
    alternating = "alternating"


def train(
    data: Annotated[Path, typer.Option(help="a folder of COCO json (train.json, images/train) or VOC xml")],
    out: Annotated[Path, typer.Option(help="the run's folder; a run that stopped goes on from there")],
    preset: Annotated[str, typer.Option(help="which detector")] = "LITE",
    start: Annotated[
        str, typer.Option(help="imagenet, nothing, a classifier's .pth, or a detector's name or file")
    ] = "imagenet",
    schedule: Annotated[Schedule, typer.Option(help="all at once, or the paper's four steps in turn")] = Schedule.joint,
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="a json of Recipe's fields, as a run writes one; options go before")
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="passes over the pictures  [default: 6]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="pictures a step  [default: 16]")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="peak learning rate  [default: 5e-4]")] = None,
    body_lr: Annotated[
        float | None, typer.Option(min=0.0, help="the same for the backbone's body  [default: 2e-4]")
    ] = None,
    validation: Annotated[float, typer.Option(min=0.0, max=0.5, help="share of the pictures set aside")] = 0.05,
    seed: Annotated[int | None, typer.Option(min=0, help="[default: 0]")] = None,
    bf16: Annotated[bool | None, typer.Option(help="autocast; pays on CPUs with AMX")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto; for several GPUs start it with torchrun")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="torch's threads; 0 leaves it the choice")] = 0,
    skip_bad_boxes: Annotated[bool, typer.Option(help="leave out boxes without area or off the picture")] = False,
) -> None:
    """Train a detector on your own pictures."""
    import torch

    from model.detector import CheckpointError
    from model.training.data import DataError
    from model.training.loop import TrainingError
    from model.training.processes import leave
    from model.training.run import train as run
    from service.recipes import read_recipe

    if threads:
        torch.set_num_threads(threads)
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "body_lr": body_lr, "seed": seed, "bf16": bf16}
    try:
        recipe = read_recipe(recipe_file, {key: value for key, value in given.items() if value is not None})
        run(
            data,
            out,
            preset=preset,
            start=start,
            recipe=recipe,
            schedule=schedule.value,
            device=device,
            validation=validation,
            skip_bad_boxes=skip_bad_boxes,
            console=console,
        )
    except (TrainingError, DataError, CheckpointError, ValueError) as error:
        _fail(error)
    finally:
        leave()


def evaluate(
    data: Annotated[Path, typer.Option(help="a folder of COCO json or VOC xml, as for train")],
    weights: Annotated[str, typer.Option(help="a name of the manifest, or a file")] = "lite-voc20",
    split: Annotated[str, typer.Option(help="which pictures; validation cuts train as `frcnn train` does")] = "test",
    validation: Annotated[float, typer.Option(min=0.01, max=0.5, help="the share that was set aside")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="the seed that it was trained with")] = 0,
    device: Annotated[str, typer.Option()] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures there too")] = None,
) -> None:
    """Average precision of a detector on labelled pictures."""
    from model.detector import CheckpointError, Detector
    from model.training.data import DataError, load_dataset
    from model.training.data import split as cut
    from model.training.evaluate import evaluate as judge
    from model.training.evaluate import predict
    from model.training.scores import report

    try:
        detector = Detector.from_checkpoint(weights, device=device, precision=precision)
        dataset = load_dataset(data, "train" if split == "validation" else split, on_bad_box="skip")
        if split == "validation":
            _, dataset = cut(dataset, validation, seed)
        if dataset.classes != detector.info.classes:
            raise DataError(
                [f"the detector's classes are {detector.info.classes[1:]}, the data's {dataset.classes[1:]}"]
            )
        found = predict(detector, dataset, batch_size=batch_size, progress=console.is_terminal)
        result, scores = judge(found, dataset), report(found, dataset)
    except (DataError, CheckpointError, ValueError) as error:
        _fail(error)
    console.print(result.table())
    console.print(
        f"best F1 {scores.f1:.3f} above score {scores.threshold:.2f}: precision {scores.precision:.3f}, recall "
        f"{scores.recall:.3f}, {scores.false_per_picture:.2f} false a picture; calibration error "
        f"{scores.calibration_error:.3f}"
    )
    console.print(f"{detector.info.name}, {detector.info.precision}, {detector.info.device}: {split} of {data}")
    if json_file is not None:
        about = {"weights": detector.info.name, "sha256": detector.info.sha256, "precision": detector.info.precision}
        figures = result.to_dict() | {"scores": scores.to_dict()}
        json_file.write_text(json.dumps(about | {"data": data.name, "split": split} | figures, indent=1) + "\n")


def _fail(error: Exception) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False)
    raise typer.Exit(1)
