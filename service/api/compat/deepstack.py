"""DeepStack's ``POST /v1/vision/detection``, which Frigate and others call.

Frigate reads at most twenty predictions and stops at the first below 0.4, so they are sorted and limited.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from service.api.compat import integer_box
from service.api.context import ProblemMembers
from service.api.dependencies import Handler, TimeoutMs
from service.api.openapi import BINARY, any_body, problems
from service.api.options import DetectionOptions, Fraction, merge, validate

MIN_CONFIDENCE = 0.4  # DeepStack's default
MAX_PREDICTIONS = 20  # as many as Frigate's array holds

router = APIRouter(
    tags=["compat"], dependencies=[Depends(ProblemMembers(lambda detail: {"success": False, "error": detail}))]
)


class DeepStackOptions(BaseModel):
    """The option that DeepStack has and ``POST /detect`` has under another name."""

    min_confidence: Fraction = Field(MIN_CONFIDENCE, description="predictions have more than this confidence")


@router.post(
    "/v1/vision/detection",
    summary="As DeepStack",
    response_model=None,
    responses=problems(),
    openapi_extra=any_body(
        {"multipart/form-data": {"image": BINARY} | DeepStackOptions.model_json_schema()["properties"]},
        required=("image",),
    ),
)
async def detection(request: Request, handler: Handler, timeout_ms: TimeoutMs = None) -> dict[str, Any]:
    """Send a form with the file field `image` and optionally `min_confidence`; corners are whole pixels."""
    image_request = await handler.read_request(request, timeout_ms)
    fields = dict(image_request.options)
    fields.pop("api_key", None)  # DeepStack's own; this service's keys are in a header
    own = {name: fields.pop(name) for name in DeepStackOptions.model_fields if name in fields}
    threshold = validate(DeepStackOptions, own).min_confidence
    options = merge(DetectionOptions(max_detections=MAX_PREDICTIONS), fields | {"score_threshold": threshold})
    result = await handler.infer(image_request, options.resolve(handler.info, handler.settings))
    detections = result.detections
    predictions = [
        {"label": label, "confidence": score} | integer_box(box, ("x_min", "y_min", "x_max", "y_max"))
        for label, score, box in zip(
            detections.labels, detections.scores.tolist(), detections.boxes.tolist(), strict=True
        )
    ]
    timings = handler.record_timings(result)
    return {"success": True, "predictions": predictions, "inferenceMs": round(timings["total"])}
