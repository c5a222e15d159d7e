"""The ``frcnn`` command."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from service.cli import training
from service.errors import ServiceError
from service.exit_codes import MISCONFIGURED, NOT_STARTED, code_for
from service.inference.memory import advise, is_out_of_memory
from service.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from model.structures import Detections
    from service.inference.decoding import Picture

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Faster R-CNN: a picture in, boxes out.")
weights = typer.Typer(no_args_is_help=True, help="The checkpoints that have a name.")
app.add_typer(weights, name="weights")

app.command()(training.train)
app.command()(training.evaluate)
app.command()(training.factor)
app.command()(training.calibrate)

out = Console()


def _setting(name: str) -> Any:
    """An option of the setting's name and description; its value is checked with all the others, by ``Settings``."""
    field = Settings.model_fields[name]
    default = "unset" if field.default is None else field.default
    return typer.Option(
        f"--{name.replace('_', '-')}", help=f"{field.description}  (FRCNN_{name.upper()}, default {default})"
    )


@app.command()
def serve(
    host: Annotated[str | None, _setting("host")] = None,
    port: Annotated[int | None, _setting("port")] = None,
    weights: Annotated[str | None, _setting("weights")] = None,
    device: Annotated[str | None, _setting("device")] = None,
    precision: Annotated[str | None, _setting("precision")] = None,
    canvas: Annotated[str | None, _setting("canvas")] = None,
    torch_threads: Annotated[int | None, _setting("torch_threads")] = None,
    cache_dir: Annotated[Path | None, _setting("cache_dir")] = None,
    max_batch: Annotated[int | None, _setting("max_batch")] = None,
    max_batch_pixels: Annotated[int | None, _setting("max_batch_pixels")] = None,
    max_queue: Annotated[int | None, _setting("max_queue")] = None,
    max_queue_pixels: Annotated[int | None, _setting("max_queue_pixels")] = None,
    timeout_ms: Annotated[int | None, _setting("timeout_ms")] = None,
    drain_seconds: Annotated[float | None, _setting("drain_seconds")] = None,
    watchdog_seconds: Annotated[float | None, _setting("watchdog_seconds")] = None,
    decode_threads: Annotated[int | None, _setting("decode_threads")] = None,
    max_body_bytes: Annotated[int | None, _setting("max_body_bytes")] = None,
    max_bodies_bytes: Annotated[int | None, _setting("max_bodies_bytes")] = None,
    body_seconds: Annotated[float | None, _setting("body_seconds")] = None,
    max_pixels: Annotated[int | None, _setting("max_pixels")] = None,
    score_threshold: Annotated[float | None, _setting("score_threshold")] = None,
    max_detections: Annotated[int | None, _setting("max_detections")] = None,
    api_keys_file: Annotated[Path | None, _setting("api_keys_file")] = None,
    max_inflight_per_key: Annotated[int | None, _setting("max_inflight_per_key")] = None,
    tls_cert_file: Annotated[Path | None, _setting("tls_cert_file")] = None,
    tls_key_file: Annotated[Path | None, _setting("tls_key_file")] = None,
    deepstack: Annotated[bool | None, _setting("deepstack")] = None,
    huggingface: Annotated[bool | None, _setting("huggingface")] = None,
    open_inference: Annotated[bool | None, _setting("open_inference")] = None,
    log_format: Annotated[str | None, _setting("log_format")] = None,
    log_level: Annotated[str | None, _setting("log_level")] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="replicas on Ray Serve, one a GPU: on the cluster in RAY_ADDRESS, or a new one"),
    ] = False,
    replicas: Annotated[int, typer.Option(min=1, help="with --ray: replicas, at least")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="with --ray: replicas, at most, as the load asks for; unset: as at least")
    ] = None,
) -> None:
    """Serve over HTTP until SIGTERM. Every setting is also an environment variable; the option wins."""
    given = {name: value for name, value in locals().items() if name in Settings.model_fields}
    try:
        settings = load_settings(**given)
        if ray:
            _run_on_ray(settings, replicas, max_replicas or replicas)
        else:
            _run_server(settings)
    except (SettingsError, OSError) as error:
        _fail(str(error), code_for(error))


def _run_server(settings: Settings) -> NoReturn:
    from service.app import create_app, each_device
    from service.server.logging import configure_logging
    from service.server.uvicorn_server import Server

    configure_logging(settings.log_format, settings.log_level)
    if settings.cache_dir is not None:  # model/ looks into the environment
        os.environ["FRCNN_CACHE_DIR"] = str(settings.cache_dir)
    try:
        devices = each_device(settings.device)  # before anything else is begun: a wrong one ends the command at once
    except ValueError as error:
        logging.getLogger("frcnn.cli").error("the detector could not be started", extra={"reason": str(error)})
        raise typer.Exit(MISCONFIGURED) from None
    Server(create_app(settings, devices=lambda _: devices), settings).run_to_the_end()


def _run_on_ray(settings: Settings, at_least: int, at_most: int) -> None:
    from service.server.logging import configure_logging

    try:
        from service.server.ray_app import Scale, run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        _fail(
            "Ray is not installed; install the service with its extra: pip install 'frcnn-service[ray]'.", MISCONFIGURED
        )
    configure_logging(settings.log_format, settings.log_level)
    try:
        run(settings, Scale(min_replicas=at_least, max_replicas=at_most))
    except RuntimeError as error:
        _fail(str(error))


@app.command()
def detect(
    images: Annotated[
        list[Path], typer.Argument(help="pictures: JPEG, PNG, WebP, BMP, TIFF or GIF; with --url also folders")
    ],
    out_path: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="draw the boxes: a file for one picture, a folder for several; with --url, a file for the lines of "
            "JSON, which a second run goes on with",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a picture instead of a table")] = False,
    url: Annotated[str | None, typer.Option(help="ask the service that runs there; always JSON")] = None,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="pictures under way at once, with --url")] = 8,
    api_key: Annotated[
        str | None, typer.Option(envvar="FRCNN_API_KEY", help="of the service, with --url", show_envvar=True)
    ] = None,
    weights: Annotated[str | None, _setting("weights")] = None,
    device: Annotated[str | None, _setting("device")] = None,
    score_threshold: Annotated[float | None, _setting("score_threshold")] = None,
    max_detections: Annotated[int | None, _setting("max_detections")] = None,
) -> None:
    """Detect in pictures right here, or with --url through a service.

    Exits with 1 if any picture failed, with 2 if a setting, the device or the weights cannot be used.
    """
    if url is not None:
        if weights is not None or device is not None:
            _fail(
                "With --url the service has its own weights and device; leave --weights and --device out.",
                MISCONFIGURED,
            )
        _detect_remotely(url, images, out_path, at_once, api_key, score_threshold, max_detections)
        return

    from model.detector import DetectOptions, NotFiniteError
    from model.runtime.malloc import configure_malloc
    from service.app import load_detector
    from service.inference.decoding import decode, prepare_pillow

    configure_malloc()
    given = {name: value for name, value in locals().items() if name in Settings.model_fields}
    try:
        settings = load_settings(**given)
        detector = load_detector(settings)
    except ValueError as error:
        _fail(str(error), MISCONFIGURED)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _fail(advise(error, "while the weights were loaded"))
    if out_path is not None and len(images) > 1:
        out_path.mkdir(parents=True, exist_ok=True)
    prepare_pillow()
    options = DetectOptions(score_threshold=settings.score_threshold, max_detections=settings.max_detections)
    failed = False
    for path in images:
        try:
            picture = decode(path.read_bytes(), max_pixels=settings.max_pixels)
        except (OSError, ServiceError) as error:
            _complain(f"{path}: {error}")
            failed = True
            continue
        try:
            [found] = detector.detect([picture], [options])
        except NotFiniteError as error:
            _complain(f"{path}: {error}")
            failed = True
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            _complain(f"{path}: {advise(error, 'on this image')}")
            failed = True
            continue
        if as_json:
            typer.echo(_as_json(path, picture, found))
        else:
            out.print(_as_table(path, found))
        if out_path is not None:
            _draw(picture, found, out_path / f"{path.stem}.png" if len(images) > 1 else out_path)
    if failed:
        raise typer.Exit(1)


def _detect_remotely(
    url: str,
    images: list[Path],
    out_path: Path | None,
    at_once: int,
    api_key: str | None,
    score_threshold: float | None,
    max_detections: int | None,
) -> None:
    import httpx

    from service.cli.remote import detect_remotely
    from service.client import DetectError

    options = {"score_threshold": score_threshold, "max_detections": max_detections}
    try:
        well = detect_remotely(url, images, out_path, at_once, api_key, **options)
    except (DetectError, httpx.InvalidURL, ValueError, OSError) as error:
        _fail(str(error))
    if not well:
        raise typer.Exit(1)


@weights.command("list")
def weights_list() -> None:
    """List the checkpoints that ``--weights`` knows by name."""
    from model.checkpoint import CheckpointError, load_manifest

    table = Table("name", "preset", "classes", "metrics", "here", "licence")
    try:
        entries = load_manifest()
    except CheckpointError as error:
        _fail(str(error))
    for entry in entries:
        metrics = "\n".join(f"{name} {value:.3f}" for name, value in entry.metrics.items())
        here = "no" if entry.path is None else "yes"
        table.add_row(entry.name, entry.preset, str(len(entry.classes) - 1), metrics, here, entry.licence)
    out.print(table)


@weights.command("fetch")
def weights_fetch(name: Annotated[str, typer.Argument(help="a name that `frcnn weights list` shows")]) -> None:
    """Download published weights into the cache folder; `frcnn serve` itself never fetches anything."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from service.cli.weights import FetchError, fetch

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(name, total=None)
            path = fetch(name, progress=lambda here, total: bar.update(task, completed=here, total=total))
    except (FetchError, ValueError, OSError) as error:
        _fail(str(error))
    out.print(str(path), soft_wrap=True)


@weights.command("verify")
def weights_verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="names in the manifest; all that are here by default")
    ] = None,
) -> None:
    """Compare the files' SHA-256 with the manifest's. Exits with 1 where one differs."""
    from model.checkpoint import CheckpointError, load_manifest, verify

    try:
        entries = {entry.name: entry for entry in load_manifest()}
    except CheckpointError as error:
        _fail(str(error))
    unknown = [name for name in names or () if name not in entries]
    if unknown:
        _fail(f"No checkpoint is named {unknown[0]}; there are {', '.join(entries)}.")
    failed = False
    for name in names or [name for name, entry in entries.items() if entry.path is not None]:
        try:
            out.print(f"{name}: {verify(entries[name])} is as the manifest says", soft_wrap=True)
        except (CheckpointError, OSError) as error:
            out.print(f"{name}: {error}", style="red", soft_wrap=True, markup=False)
            failed = True
    if failed:
        raise typer.Exit(1)


def _as_table(path: Path, found: Detections) -> Table:
    table = Table("label", "score", "x1", "y1", "x2", "y2", title=f"{path}: {len(found)} found")
    for label, score, box in zip(found.labels, found.scores.tolist(), found.boxes.tolist(), strict=True):
        table.add_row(label, f"{score:.3f}", *(f"{value:.1f}" for value in box))
    return table


def _as_json(path: Path, picture: Picture, found: Detections) -> str:
    import orjson

    return orjson.dumps(
        {
            "file": str(path),
            "image": {"width": picture.shape[1], "height": picture.shape[0]},
            "boxes": found.boxes.numpy(),
            "scores": found.scores.numpy(),
            "labels": list(found.labels),
            "class_ids": found.class_ids.numpy(),
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    ).decode()


def _draw(picture: Picture, found: Detections, path: Path) -> None:
    from service.rendering.boxes import draw_detections, encode

    path.write_bytes(encode(draw_detections(picture, found), "image/png" if path.suffix == ".png" else "image/jpeg"))


def _fail(message: str, code: int = NOT_STARTED) -> NoReturn:
    _complain(message)
    raise typer.Exit(code)


def _complain(message: str) -> None:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
