"""``frcnn detect``: detect objects in image files, in this process or through a running service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.table import Table

from service.cli.console import fail, print_error, stdout
from service.cli.setting_options import setting_options
from service.errors import ServiceError
from service.exit_codes import MISCONFIGURED
from service.inference.memory import advise, is_out_of_memory
from service.settings import load_settings

if TYPE_CHECKING:
    from model.structures import Detections, DetectOptions, ImageArray
    from service.inference.detector import DetectorLike


@setting_options(["weights", "device", "score_threshold", "max_detections"])
def detect(
    images: Annotated[
        list[Path], typer.Argument(help="images: JPEG, PNG, WebP, BMP, TIFF or GIF; with --url also folders")
    ],
    out_path: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="draw the boxes: a file for one image, a folder for several; with --url, a file for the lines of "
            "JSON, which a second run goes on with",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object an image instead of a table")] = False,
    url: Annotated[str | None, typer.Option(help="ask the service that runs there; always JSON")] = None,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="images in progress at once, with --url")] = 8,
    api_key: Annotated[
        str | None, typer.Option(envvar="FRCNN_API_KEY", help="of the service, with --url", show_envvar=True)
    ] = None,
    **overrides: Any,
) -> None:
    """Detect objects in images, in this process or with --url through a service.

    Exits with 1 if any image failed, with 2 if a setting, the device or the weights cannot be used.
    """
    if url is not None:
        _detect_remotely(url, images, out_path, at_once, api_key, overrides)
    else:
        _detect_locally(images, out_path, as_json, overrides)


def _detect_locally(images: list[Path], out_path: Path | None, as_json: bool, overrides: dict[str, Any]) -> None:
    from model.detector import DetectOptions
    from model.runtime.malloc import configure_malloc
    from service.images.decoding import prepare_pillow
    from service.inference.detector import load_detector

    configure_malloc()
    try:
        settings = load_settings(**overrides)
        detector = load_detector(settings)
    except ValueError as error:
        fail(error, MISCONFIGURED)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fail(advise(error, "while the weights were loaded"))
    if out_path is not None and len(images) > 1:
        out_path.mkdir(parents=True, exist_ok=True)
    prepare_pillow()
    options = DetectOptions(score_threshold=settings.score_threshold, max_detections=settings.max_detections)
    failed = False
    for path in images:
        result = _detect_file(detector, path, options, settings.max_pixels)
        if result is None:
            failed = True
            continue
        image, detections = result
        if as_json:
            typer.echo(_json_line(path, image, detections))
        else:
            stdout.print(_table(path, detections))
        if out_path is not None:
            _draw(image, detections, out_path / f"{path.stem}.png" if len(images) > 1 else out_path)
    if failed:
        raise typer.Exit(1)


def _detect_file(
    detector: DetectorLike, path: Path, options: DetectOptions, max_pixels: int
) -> tuple[ImageArray, Detections] | None:
    """Return the decoded image and its detections; None where it failed, after printing why."""
    from model.detector import NotFiniteError
    from service.images.decoding import decode

    try:
        image = decode(path.read_bytes(), max_pixels=max_pixels)
        [detections] = detector.detect([image], [options])
    except (OSError, ServiceError, NotFiniteError) as error:
        print_error(f"{path}: {error}")
        return None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print_error(f"{path}: {advise(error, 'on this image')}")
        return None
    return image, detections


def _detect_remotely(
    url: str,
    images: list[Path],
    out_path: Path | None,
    at_once: int,
    api_key: str | None,
    overrides: dict[str, Any],
) -> None:
    import httpx

    from service.cli.remote import detect_remotely
    from service.client import DetectError

    options = dict(overrides)
    if options.pop("weights") is not None or options.pop("device") is not None:
        fail("With --url the service has its own weights and device; leave --weights and --device out.", MISCONFIGURED)
    try:
        succeeded = detect_remotely(url, images, out_path, at_once, api_key, **options)
    except (DetectError, httpx.InvalidURL, ValueError, OSError) as error:
        fail(error)
    if not succeeded:
        raise typer.Exit(1)


def _table(path: Path, detections: Detections) -> Table:
    table = Table("label", "score", "x1", "y1", "x2", "y2", title=f"{path}: {len(detections)} found")
    rows = zip(detections.labels, detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    for label, score, box in rows:
        table.add_row(label, f"{score:.3f}", *(f"{coordinate:.1f}" for coordinate in box))
    return table


def _json_line(path: Path, image: ImageArray, detections: Detections) -> str:
    document = {
        "file": str(path),
        "image": {"width": image.shape[1], "height": image.shape[0]},
        "boxes": detections.boxes.numpy(),
        "scores": detections.scores.numpy(),
        "labels": list(detections.labels),
        "class_ids": detections.class_ids.numpy(),
    }
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _draw(image: ImageArray, detections: Detections, path: Path) -> None:
    from service.rendering.boxes import draw_detections, encode

    path.write_bytes(encode(draw_detections(image, detections), "image/png" if path.suffix == ".png" else "image/jpeg"))
