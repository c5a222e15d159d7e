"""Hugging Face's object detection: the picture as the body, or in base64 as `inputs` beside `parameters`."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request

from service.api.compat import receive_raw, speaking
from service.api.dependencies import Served
from service.api.openapi import BASE64, BINARY, any_body, problems
from service.api.request import open_envelope
from service.api.routes.detect import finish
from service.api.schemas import Options, merge
from service.errors import BadRequest

router = APIRouter(tags=["dialects"], dependencies=[Depends(speaking(lambda detail: {"error": detail}))])


@router.post(
    "/huggingface/object-detection",
    summary="As Hugging Face's object detection",
    response_model=None,
    responses=problems(),
    openapi_extra=any_body(
        {"image/*": BINARY, "application/json": {"inputs": BASE64, "parameters": {"type": "object"}}},
        required=("inputs",),
    ),
)
async def object_detection(request: Request, pipeline: Served) -> list[dict[str, Any]]:
    """`parameters` may hold `threshold`, by default 0.5 as in its pipelines."""
    visit = await receive_raw(pipeline, request)
    [picture] = visit.upload.pictures
    parameters: dict[str, Any] = {}
    if request.headers.get("content-type", "").startswith("application/json"):
        picture, parameters = await pipeline.in_thread(_open, picture)
    options = merge(Options(), {"score_threshold": parameters.get("threshold", 0.5)})
    wanted = options.resolve(pipeline.info, pipeline.settings)
    seen = await pipeline.attend(visit, lambda: pipeline.look(visit, picture, wanted))
    found = seen.detections
    answer = [
        {
            "label": label,
            "score": score,
            "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), (round(value) for value in box), strict=True)),
        }
        for label, score, box in zip(found.labels, found.scores.tolist(), found.boxes.tolist(), strict=True)
    ]
    finish(pipeline, seen)
    return answer


def _open(body: bytes) -> tuple[bytes, dict[str, Any]]:
    try:
        document = orjson.loads(body)
        parameters = document.get("parameters") or {}
        inputs = document["inputs"]
    except (orjson.JSONDecodeError, AttributeError, LookupError):
        raise BadRequest('The JSON body must be {"inputs": "<base64>", "parameters": {"threshold": 0.5}}.') from None
    if not isinstance(parameters, dict):
        raise BadRequest("`parameters` must be an object.")
    upload = open_envelope(orjson.dumps({"image": inputs}), "application/json")
    return upload.pictures[0], parameters
