"""``POST /explain``: why an object was missed."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.context import request_context
from service.api.dependencies import Handler, TimeoutMs
from service.api.explanations import ExplainOptions, ExplainQuery, ExplainResponse, explain_response
from service.api.openapi import image_body, problems
from service.api.options import merge_into
from service.inference.pipeline import ImageResult

router = APIRouter(tags=["region proposals"])


def _openapi_body() -> dict[str, Any]:
    """Return the body with image and boxes: a raw image has no field for boxes."""
    extra = image_body(ExplainOptions)
    forms = extra["requestBody"]["content"]
    del forms["image/*"]
    for form in forms.values():
        form["schema"]["required"] = ["image", "boxes"]
    return extra


@router.post(
    "/explain",
    summary="Ask why an object was missed",
    response_model=ExplainResponse,
    responses={200: {"description": "How far each expected box got"}, **problems()},
    openapi_extra=_openapi_body(),
)
async def explain(
    request: Request, handler: Handler, query: Annotated[ExplainQuery, Query()], timeout_ms: TimeoutMs = None
) -> Response:
    """Send the image with the `boxes` that should have been detected, and their `labels` if they matter.

    Each is followed from the anchors to the response: `stage` names the stage that it reached, and `sentence` explains
    it. As a form: the file `image`, and `boxes` as JSON text; or all of it as JSON. The detector runs once, however
    many boxes there are, with the same options as `/detect`.
    """
    image_request = await handler.read_request(request, timeout_ms)
    options = merge_into(ExplainOptions, query, image_request.options)
    class_names = options.class_names(handler.info)
    detect_options = replace(options.thresholds(handler.settings), trace=True)
    result = await handler.infer(image_request, detect_options, check_size=options.check_boxes)
    request_id, model = request_context(request).request_id, handler.info.name
    writing = handler.pipeline.run_in_thread(_explain, result, options, class_names, request_id, model)
    body = await handler.write(image_request, writing)
    return handler.respond(request, result, body)


def _explain(
    result: ImageResult, options: ExplainOptions, class_names: list[str | None], request_id: str, model: str
) -> bytes:
    from model.detector import explain as explain_boxes  # slow to import; the worker has imported it already

    trace = result.detections.trace
    assert trace is not None
    boxes = trace.anchors.new_tensor(options.pixel_boxes(result.width, result.height))
    explanations = explain_boxes(trace, boxes, class_names, iou=options.iou)
    return explain_response(result, explanations, options, request_id, model)
