"""``create_app``: wiring, and nothing else."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.compat import deepstack, huggingface, open_inference
from service.api.middleware import Envelope
from service.api.openapi import add_problem_schema
from service.api.problems import handle_error
from service.api.routes import detect, docs, explain, health, model, proposals, web
from service.errors import ServiceError
from service.exit_codes import is_plain
from service.inference.decoding import prepare_pillow
from service.inference.pipeline import Pipeline
from service.inference.threads import cores
from service.inference.worker import Detects
from service.metrics import Metrics
from service.settings import Settings, load_settings

log = logging.getLogger("frcnn.app")


def create_app(
    settings: Settings | None = None,
    *,
    detector_factory: Callable[[Settings], Detects] | None = None,
    devices: Callable[[str], Sequence[str]] | None = None,
) -> FastAPI:
    """The app, whose lifespan loads the detector, warms it up and drains the queue at the end.

    settings: from the environment by default. detector_factory: called in the worker's thread, with the worker's
    device in the settings; tests bring their own. devices: those that a device setting means, one worker each; by
    default all that are visible, but with a factory of the caller's, who may not heed the device, one.
    Raises ``SettingsError``; the lifespan raises what loading the detector raises.
    """
    settings = settings or load_settings()
    if devices is None:
        devices = each_device if detector_factory is None else lambda setting: (setting,)
    metrics = Metrics()
    pipeline = Pipeline(settings, detector_factory or load_detector, metrics, devices)
    prepare_pillow()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await pipeline.open()
        except Exception as error:
            said = {"reason": str(error)} | ({"failure": str(error.__cause__)[:500]} if error.__cause__ else {})
            log.error("the detector could not be started", extra=said, exc_info=not is_plain(error))
            log.debug("how that came", exc_info=True)
            raise
        try:
            yield
        finally:
            await pipeline.close()

    app = _Documented(
        title="Faster R-CNN",
        description="A picture in, boxes out. Boxes are in pixels of the picture as shown, x to the right, y down.",
        version=importlib.metadata.version("frcnn-service"),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from other hosts; routes/docs.py needs none
        redoc_url=None,
    )
    app.state.pipeline = pipeline
    for room in (detect, proposals, explain, model, health, docs, web):
        app.include_router(room.router)
    for room, spoken in (
        (deepstack, settings.deepstack),
        (huggingface, settings.huggingface),
        (open_inference, settings.open_inference),
    ):
        if spoken:
            app.include_router(room.router)
    app.mount("/web", web.Files())
    for error in (ServiceError, HTTPException, RequestValidationError):
        app.add_exception_handler(error, handle_error)
    app.add_middleware(Envelope, metrics=metrics)
    return app


def each_device(setting: str) -> tuple[str, ...]:
    """The devices that serve, ``cpu`` or ``cuda:N``: all GPUs for ``cuda``, and for ``auto`` where there are any.

    Raises ``DeviceError`` where one cannot be used.
    """
    if setting == "cpu":  # torch need not be imported to know that
        return (setting,)
    from model.detector import choose_devices

    return choose_devices(setting)


def load_detector(settings: Settings) -> Detects:
    """The detector that ``settings`` name. Torch is imported here: errors in settings need not wait for it."""
    import torch

    from model.detector import Detector

    # torch counts the host's cores, not those of the container.
    torch.set_num_threads(settings.torch_threads or min(torch.get_num_threads(), cores()))
    detector = Detector.from_checkpoint(
        settings.weights,
        device=settings.device,
        precision=settings.precision,
        canvas=settings.canvas,
    )
    if detector.device.type == "cuda":  # of this thread: pinned memory and the like are not to be the first GPU's
        torch.cuda.set_device(detector.device)
    return detector


class _Documented(FastAPI):
    """FastAPI whose OpenAPI document knows our problems."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            add_problem_schema(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema
