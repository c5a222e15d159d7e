"""Hugging Face's object detection: the image as the body, or in base64 as `inputs` beside `parameters`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from service.api.body import parse_json_image
from service.api.compat import integer_box
from service.api.context import ProblemMembers
from service.api.dependencies import Handler, TimeoutMs
from service.api.openapi import BASE64, BINARY, any_body, problems
from service.api.options import DetectionOptions, Fraction, option_error, validate

router = APIRouter(tags=["compat"], dependencies=[Depends(ProblemMembers(lambda detail: {"error": detail}))])


class Parameters(BaseModel):
    """Hugging Face's parameters; those that this service does not know are ignored."""

    threshold: Fraction = Field(0.5, description="objects score above this")


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
    parameters = Parameters()
    if request.headers.get("content-type", "").lower().startswith("application/json"):
        image, parameters = await handler.pipeline.run_in_thread(_parse_json, image_request.images[0])
        image_request = replace(image_request, images=(image,))
    options = DetectionOptions(score_threshold=parameters.threshold)
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


def _parse_json(body: bytes) -> tuple[bytes, Parameters]:
    example = '{"inputs": "<base64>", "parameters": {"threshold": 0.5}}'
    image, members = parse_json_image(body, "inputs", example)
    parameters = members.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise option_error("parameters", "it must be an object")
    known = {name: parameters[name] for name in Parameters.model_fields if name in parameters}
    return image, validate(Parameters, known)
