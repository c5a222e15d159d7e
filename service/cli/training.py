"""``frcnn train``, ``evaluate``, ``calibrate`` and ``factor``: commands that make or measure weights.

What they need of ``model.training`` is imported when they run, so that ``frcnn serve`` starts without it.
"""

from __future__ import annotations

import json
import random
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from service.cli.console import fail, stdout
from service.errors import ServiceError
from service.exit_codes import MISCONFIGURED
from service.inference.memory import advise_training, is_out_of_memory
from service.settings import load_settings


class Schedule(StrEnum):
    """How the parts are trained: all at once, or in the four steps of Faster R-CNN, section 3.2."""

    joint = "joint"
    alternating = "alternating"


def train(
    data: Annotated[Path, typer.Option(help="a folder of COCO JSON (train.json, images/train) or VOC XML")],
    out: Annotated[Path, typer.Option(help="the run's folder; a run that was interrupted continues there")],
    preset: Annotated[str, typer.Option(help="which detector")] = "LITE",
    start: Annotated[
        str, typer.Option(help="imagenet, nothing, a classifier's .pth, or a detector's name or file")
    ] = "imagenet",
    schedule: Annotated[Schedule, typer.Option(help="all at once, or the paper's four steps in turn")] = Schedule.joint,
    recipe_file: Annotated[
        Path | None,
        typer.Option("--recipe", help="a JSON of TrainingConfig's fields, as a run writes one; options override it"),
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=0.01, help="passes over the images (default 7)")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="images a step (default 16)")] = None,
    lr: Annotated[float | None, typer.Option(min=0.0, help="peak learning rate (default 5e-4)")] = None,
    body_lr: Annotated[
        float | None, typer.Option(min=0.0, help="the same for the backbone's body (default 2e-4)")
    ] = None,
    validation: Annotated[float, typer.Option(min=0.0, max=0.5, help="share of the images set aside")] = 0.05,
    seed: Annotated[
        int | None, typer.Option(min=0, help="seed of the images set aside, and of all random choices (default 0)")
    ] = None,
    bf16: Annotated[bool | None, typer.Option(help="bf16 autocast; faster on CPUs with AMX")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto; for several GPUs start it with torchrun")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="torch's threads; 0: torch decides")] = 0,
    skip_bad_boxes: Annotated[bool, typer.Option(help="leave out boxes without area or off the image")] = False,
) -> None:
    """Train a detector on your own images."""
    import torch

    from model.data import DataError
    from model.detector import CheckpointError, DeviceError, NotFiniteError
    from model.runtime.malloc import configure_malloc
    from model.training.config import TrainingError
    from model.training.distributed import shutdown
    from model.training.run import train as run
    from service.cli.recipes import read_recipe

    configure_malloc()
    if threads:
        torch.set_num_threads(threads)
    overrides = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "body_lr": body_lr, "seed": seed, "bf16": bf16}
    try:
        recipe = read_recipe(recipe_file, {key: value for key, value in overrides.items() if value is not None})
        run(
            data,
            out,
            preset=preset,
            start=start,
            config=recipe,
            schedule=schedule.value,
            device=device,
            validation=validation,
            skip_bad_boxes=skip_bad_boxes,
            console=stdout,
        )
    except DeviceError as error:
        fail(error, MISCONFIGURED)
    except (TrainingError, DataError, CheckpointError, NotFiniteError, ValueError) as error:
        fail(error)
    except RuntimeError as error:
        _fail_out_of_memory(error)
    finally:
        shutdown()


def evaluate(
    data: Annotated[Path, typer.Option(help="a folder of COCO JSON or VOC XML, as for train")],
    weights: Annotated[str, typer.Option(help="a name of the manifest, or a file")] = "lite-voc20",
    split: Annotated[str, typer.Option(help="which images; validation cuts train as `frcnn train` does")] = "test",
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
    """Measure a detector on labelled images: average precision, and how reliable its scores are."""
    from model.data import DataError
    from model.detector import CheckpointError, Detector, DeviceError, NotFiniteError
    from model.evaluation.predictions import predict
    from model.evaluation.report import build_report, load_split
    from model.runtime.malloc import configure_malloc

    configure_malloc()
    try:
        earlier = None if against is None else json.loads(against.read_text())
        detector = Detector.from_checkpoint(weights, device=device, precision=precision)
        dataset = load_split(data, split, validation=validation, seed=seed)
        detections = predict(detector, dataset, batch_size=batch_size, progress=stdout.is_terminal)
        result = build_report(detector.info, detections, dataset, data.resolve().name, split)
        differences = [] if earlier is None else list(result.differences(earlier))
    except DeviceError as error:
        fail(error, MISCONFIGURED)
    except (DataError, CheckpointError, NotFiniteError, ValueError, OSError) as error:
        fail(error)
    except RuntimeError as error:
        _fail_out_of_memory(error)
    stdout.print(result.evaluation.table())
    scores = result.scores
    for name, point in (("best F1", scores.best), ("at its default, F1", scores.served)):
        if point is not None:
            stdout.print(
                f"{name} {point.f1:.3f} above score {point.threshold:.2f}: precision {point.precision:.3f}, recall "
                f"{point.recall:.3f}, {point.false_per_image:.2f} false an image"
            )
    stdout.print(f"calibration error {scores.calibration_error:.3f} over {scores.detections} detections")
    stdout.print(f"{detector.info.name}, {detector.info.precision}, {detector.info.device}: {split} of {data}")
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    if against is not None:
        _compare(differences, against)


def calibrate(
    images: Annotated[list[Path], typer.Argument(help="images like those to be served, or folders of them; no labels")],
    weights: Annotated[str, typer.Option(help="a name of the manifest, or a file")] = "lite-voc20",
    count: Annotated[int, typer.Option(min=1, help="how many of them are used")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="seed of the choice of images")] = 0,
) -> None:
    """Measure the input ranges of the layers, for ``--precision int8``: FILE.ranges.json beside the weights."""
    from model.detector import CheckpointError, Detector, NotFiniteError
    from model.runtime.malloc import configure_malloc
    from model.structures import ImageArray
    from model.training.quantization_ranges import write_quantization_ranges
    from service.cli.remote import find_images
    from service.images.decoding import decode, prepare_pillow

    def read_image(path: Path) -> ImageArray:
        try:
            return decode(path.read_bytes(), max_pixels=max_pixels)
        except ServiceError as error:
            raise ValueError(f"{path}: {error.detail}") from error

    configure_malloc()
    prepare_pillow()
    max_pixels = load_settings().max_pixels
    paths = list(find_images(images))
    if len(paths) > count:
        paths = sorted(random.Random(seed).sample(paths, count))
    try:
        detector = Detector.from_checkpoint(weights, device="cpu", precision="fp32")
        path, layers = write_quantization_ranges(detector, map(read_image, paths))
    except (CheckpointError, NotFiniteError, ValueError, OSError) as error:
        fail(error)
    stdout.print(f"{path}: {layers} layers, measured on {len(paths)} images", soft_wrap=True)


def factor(
    data: Annotated[Path, typer.Option(help="the images that it was trained on, as for train")],
    weights: Annotated[str, typer.Option(help="a name of the manifest, or a file")],
    out: Annotated[Path, typer.Option(help="the new file, .safetensors")],
    rank: Annotated[int, typer.Option(min=1, help="channels between the two layers")] = 128,
    image_count: Annotated[
        int, typer.Option("--images", min=1, help="images that the split of fc6 is fitted to")
    ] = 200,
    validation: Annotated[float, typer.Option(min=0, max=0.5, help="the share set aside, which is not used")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="the seed that it was trained with")] = 0,
) -> None:
    """Split a detector's fc6 into two thinner layers (Fast R-CNN 3.1): faster, and hardly less accurate."""
    from model.data import DataError, load_dataset, split
    from model.detector import CheckpointError, Detector, NotFiniteError
    from model.runtime.malloc import configure_malloc
    from model.training.factoring import factor_checkpoint

    configure_malloc()
    try:
        detector = Detector.from_checkpoint(weights, device="cpu", precision="fp32")
        dataset = load_dataset(data, "train", on_bad_box="skip")
        if validation > 0:
            dataset, _ = split(dataset, validation, seed)
        digest, parameters = factor_checkpoint(detector, dataset, rank, out, images=image_count, seed=seed)
    except (DataError, CheckpointError, NotFiniteError, ValueError, OSError) as error:
        fail(error)
    stdout.print(
        f"{out}: {parameters / 1e6:.2f} M parameters instead of {detector.info.parameters / 1e6:.2f}, {digest}"
    )
    stdout.print(f"Measure it: frcnn evaluate --data {data} --split validation --weights {out}")


def _compare(differences: list[tuple[str, float, float]], against: Path) -> None:
    """Print the differences from earlier figures; fail where a headline figure differs by over 0.1 points."""
    from model.evaluation.report import HEADLINES

    headlines, classes = differences[: len(HEADLINES)], differences[len(HEADLINES) :]
    changes = ", ".join(f"{name} {value - earlier:+.4f}" for name, value, earlier in headlines)
    largest = max(classes, key=lambda row: abs(row[1] - row[2]), default=None)
    class_change = (
        ""
        if largest is None
        else f"; the class with the largest difference is {largest[0]}, {largest[1] - largest[2]:+.4f}"
    )
    stdout.print(f"against {against}: {changes}{class_change}")
    if any(abs(value - earlier) > 0.001 for _, value, earlier in headlines):
        fail("a figure differs by more than 0.1 points from the earlier one")


def _fail_out_of_memory(error: RuntimeError) -> NoReturn:
    """End the command with advice where memory ran out; raise any other error again."""
    if not is_out_of_memory(error):
        raise error
    fail(advise_training(error))
