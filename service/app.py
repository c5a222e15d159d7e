"""Make the app: ``create_app`` connects settings, pipeline, routes and middleware."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service.api.admission import Admission
from service.api.compat import deepstack, huggingface, open_inference
from service.api.error_handlers import handle_error
from service.api.handler import ImageHandler
from service.api.middleware import RequestContextMiddleware
from service.api.openapi import add_problem_schema
from service.api.routes import detect, docs, explain, health, model, proposals, web
from service.errors import ServiceError
from service.exit_codes import is_plain
from service.images.decoding import prepare_pillow
from service.images.pool import ProcessSource
from service.inference.detector import DetectorLike, load_detector, resolve_devices
from service.inference.pipeline import Pipeline
from service.metrics import Metrics
from service.settings import Settings, load_settings

log = logging.getLogger("frcnn.app")


def create_app(
    settings: Settings | None = None,
    *,
    detector_factory: Callable[[Settings], DetectorLike] | None = None,
    devices: Callable[[str], Sequence[str]] | None = None,
    image_processes: ProcessSource | None = None,
) -> FastAPI:
    """Make the app, whose lifespan loads the detector, warms it up and drains the queue at the end.

    settings: from the environment by default. detector_factory: called in the worker's thread, with the worker's
    device in the settings; tests pass their own. devices: returns the devices that a device setting means, one worker
    each; by default all that are visible, or with a caller's own factory the setting itself. image_processes: where the
    processes that decode and draw come from; by default they are started, and ended with the app.
    Raises ``SettingsError``; the lifespan raises what loading the detector raises.
    """
    settings = settings or load_settings()
    if devices is None:
        devices = resolve_devices if detector_factory is None else lambda setting: (setting,)
    metrics = Metrics()
    pipeline = Pipeline(settings, detector_factory or load_detector, metrics, devices, image_processes)
    prepare_pillow()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await pipeline.open()
        except Exception as error:
            fields = {"reason": str(error)} | ({"failure": str(error.__cause__)[:500]} if error.__cause__ else {})
            log.error("the detector could not be started", extra=fields, exc_info=not is_plain(error))
            log.debug("the cause", exc_info=True)
            raise
        try:
            yield
        finally:
            await pipeline.close()

    app = _App(
        title="Faster R-CNN",
        description="An image in, boxes out. Boxes are in pixels of the image as shown, x to the right, y down.",
        version=importlib.metadata.version("frcnn-service"),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from other hosts; routes/docs.py loads none
        redoc_url=None,
    )
    app.state.pipeline = pipeline
    app.state.handler = handler = ImageHandler(pipeline)
    compat = (
        (deepstack, settings.deepstack),
        (huggingface, settings.huggingface),
        (open_inference, settings.open_inference),
    )
    modules = (detect, proposals, explain, model, health, docs, web)
    routers = [module.router for module in (*modules, *(module for module, enabled in compat if enabled))]
    for router in routers:
        app.include_router(router)
    app.mount("/web", web.Files())
    for error in (ServiceError, HTTPException, RequestValidationError):
        app.add_exception_handler(error, handle_error)
    routes = [route for router in routers for route in router.routes]
    admission = Admission(settings, pipeline.batcher, handler.keys, routes)
    app.add_middleware(RequestContextMiddleware, metrics=metrics, admission=admission)
    return app


class _App(FastAPI):
    """FastAPI whose OpenAPI document has the schema of problem documents."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            add_problem_schema(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema
