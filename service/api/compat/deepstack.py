"""DeepStack's ``POST /v1/vision/detection``, which Frigate and others call.

Frigate reads at most twenty predictions and stops at the first below 0.4, so they are sorted and cut.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from service.api.compat import speaking
from service.api.dependencies import Served
from service.api.openapi import BINARY, any_body, problems
from service.api.routes.detect import finish, single
from service.api.schemas import Options, merge

MIN_CONFIDENCE = 0.4  # DeepStack's default
MAX_PREDICTIONS = 20  # Frigate's array has no room for more

router = APIRouter(
    tags=["dialects"], dependencies=[Depends(speaking(lambda detail: {"success": False, "error": detail}))]
)


@router.post(
    "/v1/vision/detection",
    summary="As DeepStack",
    response_model=None,
    responses=problems(),
    openapi_extra=any_body(
        {"multipart/form-data": {"image": BINARY, "min_confidence": {"type": "number", "minimum": 0, "maximum": 1}}},
        required=("image",),
    ),
)
async def detection(request: Request, pipeline: Served) -> dict[str, Any]:
    """A form with the file field `image` and perhaps `min_confidence`; corners are whole pixels."""
    visit = await pipeline.receive(request, None)
    given = dict(visit.upload.options)
    given.pop("api_key", None)  # DeepStack's own; ours go in a header
    threshold = given.pop("min_confidence", MIN_CONFIDENCE)
    options = merge(Options(max_detections=MAX_PREDICTIONS), given | {"score_threshold": threshold})
    wanted = options.resolve(pipeline.info, pipeline.settings)
    picture = single(visit)
    seen = await pipeline.attend(visit, lambda: pipeline.look(visit, picture, wanted))
    found = seen.detections
    predictions = [
        {"label": label, "confidence": score}
        | dict(zip(("x_min", "y_min", "x_max", "y_max"), (round(value) for value in box), strict=True))
        for label, score, box in zip(found.labels, found.scores.tolist(), found.boxes.tolist(), strict=True)
    ]
    timings = finish(pipeline, seen)
    return {"success": True, "predictions": predictions, "inferenceMs": round(timings["total"])}
