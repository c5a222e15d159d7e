"""``frcnn train``, ``evaluate`` and what else makes or judges weights; what they need is imported when they run."""

from __future__ import annotations

import json
import random
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from service.errors import ServiceError
from service.exit_codes import MISCONFIGURED, NOT_STARTED
from service.inference.memory import advise_training, is_out_of_memory
from service.settings import load_settings

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
    epochs: Annotated[float | None, typer.Option(min=0.01, help="passes over the pictures (default 7)")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="pictures a step (default 16)")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="peak learning rate (default 5e-4)")] = None,
    body_lr: Annotated[
        float | None, typer.Option(min=0.0, help="the same for the backbone's body (default 2e-4)")
    ] = None,
    validation: Annotated[float, typer.Option(min=0.0, max=0.5, help="share of the pictures set aside")] = 0.05,
    seed: Annotated[
        int | None, typer.Option(min=0, help="which pictures are set aside, and all that is drawn (default 0)")
    ] = None,
    bf16: Annotated[bool | None, typer.Option(help="autocast; pays on CPUs with AMX")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto; for several GPUs start it with torchrun")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="torch's threads; 0 leaves it the choice")] = 0,
    skip_bad_boxes: Annotated[bool, typer.Option(help="leave out boxes without area or off the picture")] = False,
) -> None:
    """Train a detector on your own pictures."""
    import torch

    from model.detector import CheckpointError, DeviceError, NotFiniteError
    from model.runtime.malloc import configure_malloc
    from model.training.data import DataError
    from model.training.distributed import leave
    from model.training.run import train as run
    from model.training.trainer import TrainingError
    from service.cli.recipes import read_recipe

    configure_malloc()
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
    except DeviceError as error:
        _fail(error, MISCONFIGURED)
    except (TrainingError, DataError, CheckpointError, NotFiniteError, ValueError) as error:
        _fail(error)
    except RuntimeError as error:
        _fail_without_memory(error)
    finally:
        leave()


def evaluate(
    data: Annotated[Path, typer.Option(help="a folder of COCO json or VOC xml, as for train")],
    weights: Annotated[str, typer.Option(help="a name of the manifest, or a file")] = "lite-voc20",
    split: Annotated[str, typer.Option(help="which pictures; validation cuts train as `frcnn train` does")] = "test",
    validation: Annotated[float, typer.Option(min=0.01, max=0.5, help="the share that was set aside")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="the seed that it was trained with")] = 0,
    device: Annotated[str, typer.Option()] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, tf32, bf16, fp16 or int8")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures there too")] = None,
    against: Annotated[
        Path | None, typer.Option(help="figures written before; fail where AP or AR is off by over 0.1 points")
    ] = None,
) -> None:
    """Average precision of a detector on labelled pictures, and what its scores are worth."""
    from model.detector import CheckpointError, Detector, DeviceError, NotFiniteError
    from model.evaluation.coco import predict
    from model.runtime.malloc import configure_malloc
    from model.training.data import DataError
    from model.training.figures import figures, load_part

    configure_malloc()
    try:
        written = None if against is None else json.loads(against.read_text())
        detector = Detector.from_checkpoint(weights, device=device, precision=precision)
        dataset = load_part(data, split, validation=validation, seed=seed)
        found = predict(detector, dataset, batch_size=batch_size, progress=console.is_terminal)
        result = figures(detector.info, found, dataset, data.resolve().name, split)
        differences = [] if written is None else list(result.differences(written))
    except DeviceError as error:
        _fail(error, MISCONFIGURED)
    except (DataError, CheckpointError, NotFiniteError, ValueError, OSError) as error:
        _fail(error)
    except RuntimeError as error:
        _fail_without_memory(error)
    console.print(result.evaluation.table())
    scores = result.scores
    for name, point in (("best F1", scores.best), ("at its default, F1", scores.served)):
        if point is not None:
            console.print(
                f"{name} {point.f1:.3f} above score {point.threshold:.2f}: precision {point.precision:.3f}, recall "
                f"{point.recall:.3f}, {point.false_per_picture:.2f} false a picture"
            )
    console.print(f"calibration error {scores.calibration_error:.3f} over {scores.detections} detections")
    console.print(f"{detector.info.name}, {detector.info.precision}, {detector.info.device}: {split} of {data}")
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    if against is not None:
        _compare(differences, against)


def calibrate(
    pictures: Annotated[list[Path], typer.Argument(help="pictures, or folders of them, like those to come; no labels")],
    weights: Annotated[str, typer.Option(help="a name of the manifest, or a file")] = "lite-voc20",
    count: Annotated[int, typer.Option(min=1, help="so many of them are looked at")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="which ones")] = 0,
) -> None:
    """See what a detector's layers take in, which ``--precision int8`` needs: FILE.ranges.json beside its weights."""
    from model.detector import CheckpointError, Detector, NotFiniteError
    from model.runtime.malloc import configure_malloc
    from model.training.quantization_ranges import write_quantization_ranges
    from service.cli.remote import expand
    from service.inference.decoding import Picture, decode, prepare_pillow

    def look(path: Path) -> Picture:
        try:
            return decode(path.read_bytes(), max_pixels=limit)
        except ServiceError as error:
            raise ValueError(f"{path}: {error.detail}") from error

    configure_malloc()
    prepare_pillow()
    limit = load_settings().max_pixels
    chosen = list(expand(pictures))
    if len(chosen) > count:
        chosen = sorted(random.Random(seed).sample(chosen, count))
    try:
        detector = Detector.from_checkpoint(weights, device="cpu", precision="fp32")
        path, layers = write_quantization_ranges(detector, map(look, chosen))
    except (CheckpointError, NotFiniteError, ValueError, OSError) as error:
        _fail(error)
    console.print(f"{path}: {layers} layers, seen on {len(chosen)} pictures", soft_wrap=True)


def factor(
    data: Annotated[Path, typer.Option(help="the pictures that it was trained on, as for train")],
    weights: Annotated[str, typer.Option(help="a name of the manifest, or a file")],
    out: Annotated[Path, typer.Option(help="the new file, .safetensors")],
    rank: Annotated[int, typer.Option(min=1, help="channels between the two layers")] = 128,
    pictures: Annotated[int, typer.Option(min=1, help="to see what fc6 answers on real pictures")] = 200,
    validation: Annotated[
        float, typer.Option(min=0, max=0.5, help="the share set aside, which is not looked at")
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="the seed that it was trained with")] = 0,
) -> None:
    """Part a detector's fc6 into two thinner layers (Fast R-CNN 3.1): faster, and hardly less exact."""
    from model.detector import CheckpointError, Detector, NotFiniteError
    from model.runtime.malloc import configure_malloc
    from model.training.data import DataError, load_dataset, split
    from model.training.factoring import factor as factor_fc6

    configure_malloc()
    try:
        detector = Detector.from_checkpoint(weights, device="cpu", precision="fp32")
        dataset = load_dataset(data, "train", on_bad_box="skip")
        if validation > 0:
            dataset, _ = split(dataset, validation, seed)
        digest, parameters = factor_fc6(detector, dataset, rank, out, pictures=pictures, seed=seed)
    except (DataError, CheckpointError, NotFiniteError, ValueError, OSError) as error:
        _fail(error)
    console.print(
        f"{out}: {parameters / 1e6:.2f} M parameters instead of {detector.info.parameters / 1e6:.2f}, {digest}"
    )
    console.print(f"Measure it: frcnn evaluate --data {data} --split validation --weights {out}")


def _compare(differences: list[tuple[str, float, float]], against: Path) -> None:
    """Say how far the figures are from those written before, and fail where a headline is off by over 0.1 points."""
    from model.training.figures import HEADLINES

    headlines, classes = differences[: len(HEADLINES)], differences[len(HEADLINES) :]
    said = ", ".join(f"{name} {here - there:+.4f}" for name, here, there in headlines)
    far = max(classes, key=lambda row: abs(row[1] - row[2]), default=None)
    furthest = "" if far is None else f"; of the classes the furthest is {far[0]}, {far[1] - far[2]:+.4f}"
    console.print(f"against {against}: {said}{furthest}")
    if any(abs(here - there) > 0.001 for _, here, there in headlines):
        _fail(ValueError("a figure is more than 0.1 points from the one that was written"))


def _fail_without_memory(error: RuntimeError) -> NoReturn:
    """End with a sentence where memory ran out; another error is raised on."""
    if not is_out_of_memory(error):
        raise error
    _fail(RuntimeError(advise_training(error)))


def _fail(error: Exception, code: int = NOT_STARTED) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)
