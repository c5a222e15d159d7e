"""Hugging Face's object detection: the image as the body, or in base64 as `inputs` beside `parameters`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request

from service.api.body import parse_body
from service.api.compat import integer_box
from service.api.context import ProblemMembers
from service.api.dependencies import Handler, TimeoutMs
from service.api.openapi import BASE64, BINARY, any_body, problems
from service.api.options import DetectionOptions, merge
from service.errors import BadRequest

router = APIRouter(tags=["compat"], dependencies=[Depends(ProblemMembers(lambda detail: {"error": detail}))])


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
async def object_detection(request: Request, handler: Handler, timeout_ms: TimeoutMs = None) -> list[dict[str, Any]]:
    """Send the image, and optionally `threshold` in `parameters`: by default 0.5, as in Hugging Face's pipelines."""
    image_request = await handler.read_request(request, timeout_ms, raw=True)
    parameters: dict[str, Any] = {}
    if request.headers.get("content-type", "").startswith("application/json"):
        image, parameters = await handler.pipeline.run_in_thread(_parse_json, image_request.images[0])
        image_request = replace(image_request, images=(image,))
    options = merge(DetectionOptions(), {"score_threshold": parameters.get("threshold", 0.5)})
    result = await handler.infer(image_request, options.resolve(handler.info, handler.settings))
    detections = result.detections
    objects = [
        {"label": label, "score": score, "box": integer_box(box, ("xmin", "ymin", "xmax", "ymax"))}
        for label, score, box in zip(
            detections.labels, detections.scores.tolist(), detections.boxes.tolist(), strict=True
        )
    ]
    handler.record_timings(result)
    return objects


def _parse_json(body: bytes) -> tuple[bytes, dict[str, Any]]:
    try:
        document = orjson.loads(body)
        parameters = document.get("parameters") or {}
        inputs = document["inputs"]
    except (orjson.JSONDecodeError, AttributeError, LookupError):
        raise BadRequest('The JSON body must be {"inputs": "<base64>", "parameters": {"threshold": 0.5}}.') from None
    if not isinstance(parameters, dict):
        raise BadRequest("`parameters` must be an object.")
    (image,), _ = parse_body(orjson.dumps({"image": inputs}), "application/json")
    return image, parameters
