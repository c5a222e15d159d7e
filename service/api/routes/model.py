"""``GET /model``: what is being served."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.dependencies import Handler, RequireKey
from service.api.openapi import problems
from service.api.schemas import ModelAnswer

router = APIRouter(tags=["model"])


@router.get("/model", summary="What is being served", dependencies=[RequireKey], responses=problems(401))
async def model(handler: Handler) -> ModelAnswer:
    """The checkpoint, its classes and metrics, where and how it runs, and the service's limits."""
    info, settings = handler.info, handler.settings

    def default(setting: float | None, checkpoint: float) -> float:
        return checkpoint if setting is None else setting

    return ModelAnswer(
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
