"""``GET /model``: the model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service.api.dependencies import Handler, RequireKey
from service.api.openapi import problems
from service.api.schemas import Cell

router = APIRouter(tags=["model"])


class ModelResponse(BaseModel):
    """The model that is served, and the limits of the service."""

    name: str
    preset: str
    classes: list[str] = Field(description="names by class id; 0 is background")
    precision: str
    device: str
    canvases: list[Cell] = Field(description="height and width that images are padded to; empty: any")
    anchors: list[dict[str, Any]]
    parameters: int
    sha256: str | None
    metrics: dict[str, float]
    defaults: dict[str, int | float]
    limits: dict[str, int]
    optimizations: list[str] = Field(description="what was done to the network for speed, a sentence each")


@router.get("/model", summary="What is being served", dependencies=[RequireKey], responses=problems(401))
async def model(handler: Handler) -> ModelResponse:
    """Return the checkpoint, its classes and metrics, its device and precision, and the service's limits."""
    info, settings = handler.info, handler.settings

    def default(setting: float | None, checkpoint: float) -> float:
        return checkpoint if setting is None else setting

    return ModelResponse(
        name=info.name,
        preset=info.preset,
        classes=list(info.classes),
        precision=info.precision,
        device=info.device,
        canvases=[list(canvas) for canvas in info.canvases],
        anchors=[dict(level) for level in info.anchors],
        parameters=info.parameters,
        sha256=info.sha256,
        metrics=dict(info.metrics),
        defaults={
            "score_threshold": default(settings.score_threshold, info.score_threshold),
            "nms_threshold": info.nms_threshold,
            "max_detections": default(settings.max_detections, info.max_detections),
        },
        limits={
            "max_proposals": info.max_proposals,
            "max_batch": settings.max_batch,
            "max_body_bytes": settings.max_body_bytes,
            "max_pixels": settings.max_pixels,
            "timeout_ms": settings.timeout_ms,
        },
        optimizations=list(info.optimizations),
    )
