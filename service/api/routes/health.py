"""``/livez``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service.api.dependencies import Handler
from service.api.openapi import problems
from service.errors import QueueFull, Unavailable

router = APIRouter(tags=["health"])

_LONGEST_WAIT = 5.0  # seconds for a process that decodes


class HealthResponse(BaseModel):
    """The state of the process or of the service: alive, ready or busy."""

    status: str


@router.get("/livez", summary="Is the process alive?")
async def livez() -> HealthResponse:
    """Return 200 as long as the event loop runs; it says nothing about the detector."""
    return HealthResponse(status="alive")


@router.get("/readyz", summary="Can it answer?", responses=problems(503))
async def readyz(handler: Handler) -> HealthResponse:
    """Return 200 once the self-test has passed, until the service drains or a worker dies; with a full queue too.

    Also 503 while images wait for longer than 5 s to be decoded.
    """
    if handler.pipeline.images.waiting_seconds > _LONGEST_WAIT:
        raise Unavailable("Images wait for a process that decodes them; try another instance.", retry_after=5)
    try:
        handler.pipeline.batcher.check_open()
    except QueueFull:
        return HealthResponse(status="busy")
    return HealthResponse(status="ready")


@router.get("/metrics", summary="For Prometheus", response_class=Response)
async def metrics(handler: Handler) -> Response:
    """Return the metrics in Prometheus's text format."""
    return Response(handler.pipeline.metrics.render(), media_type=CONTENT_TYPE_LATEST)
