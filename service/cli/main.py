"""The ``frcnn`` command: its subcommands, and ``frcnn serve``."""

from __future__ import annotations

import logging
import os
from typing import Annotated, Any, NoReturn

import typer

from service.cli import training, weights
from service.cli.console import fail
from service.cli.detect import detect
from service.cli.setting_options import setting_options
from service.exit_codes import MISCONFIGURED, code_for
from service.settings import Settings, SettingsError, load_settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Faster R-CNN: an image in, boxes out.")
app.command()(training.train)
app.command()(training.evaluate)
app.command()(training.factor)
app.command()(training.calibrate)


@app.command()
@setting_options(Settings.model_fields, first=True)
def serve(
    ray: Annotated[
        bool,
        typer.Option("--ray", help="replicas on Ray Serve, one a GPU: on the cluster in RAY_ADDRESS, or a new one"),
    ] = False,
    replicas: Annotated[int, typer.Option(min=1, help="with --ray: replicas, at least")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="with --ray: replicas, at most, by load; unset: as many as --replicas")
    ] = None,
    **overrides: Any,
) -> None:
    """Serve over HTTP until SIGTERM. Every setting is also an environment variable; the option wins."""
    try:
        settings = load_settings(**overrides)
        if ray:
            _run_on_ray(settings, replicas, max_replicas or replicas)
        else:
            _run_server(settings)
    except (SettingsError, OSError) as error:
        fail(error, code_for(error))


def _run_server(settings: Settings) -> NoReturn:
    from service.app import create_app
    from service.inference.detector import resolve_devices
    from service.server.logging import configure_logging
    from service.server.uvicorn_server import Server

    configure_logging(settings.log_format, settings.log_level)
    if settings.cache_dir is not None:  # model/ reads the environment
        os.environ["FRCNN_CACHE_DIR"] = str(settings.cache_dir)
    try:
        # Before the app is made, so that a wrong device ends the command at once.
        devices = resolve_devices(settings.device)
    except ValueError as error:
        logging.getLogger("frcnn.cli").error("the detector could not be started", extra={"reason": str(error)})
        raise typer.Exit(MISCONFIGURED) from None
    Server(create_app(settings, devices=lambda _: devices), settings).run_until_exit()


def _run_on_ray(settings: Settings, min_replicas: int, max_replicas: int) -> None:
    from service.server.logging import configure_logging

    try:
        from service.server.ray_app import Scale, run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        fail(
            "Ray is not installed; install the service with its extra: pip install 'frcnn-service[ray]'.", MISCONFIGURED
        )
    configure_logging(settings.log_format, settings.log_level)
    try:
        run(settings, Scale(min_replicas=min_replicas, max_replicas=max_replicas))
    except RuntimeError as error:
        fail(error)


app.command()(detect)
app.add_typer(weights.app, name="weights")
