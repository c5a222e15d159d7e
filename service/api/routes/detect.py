"""``POST /detect`` and ``POST /detect/batch``."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response

from service.api.accept import preferred_image_type
from service.api.context import request_context
from service.api.dependencies import Handler, TimeoutMs
from service.api.handler import JSON
from service.api.openapi import batch_body, image_body, image_response, problems
from service.api.options import MAX_IMAGES, DetectionOptions, merge, option_error
from service.api.problems import problem_document
from service.api.responses import add_timings, detect_response
from service.api.schemas import BatchResponse, DetectResponse
from service.errors import BadOption, BadRequest, ServiceError
from service.rendering.boxes import detection_captions

router = APIRouter(tags=["detection"])


@router.post(
    "/detect",
    summary="Detect objects in an image",
    response_model=DetectResponse,
    responses={200: image_response("The detections by falling score"), **problems()},
    openapi_extra=image_body(DetectionOptions),
)
async def detect(
    request: Request, handler: Handler, query: Annotated[DetectionOptions, Query()], timeout_ms: TimeoutMs = None
) -> Response:
    """Send the image as the raw body, as the file field `image` of a form, or in base64 as `image` in JSON.

    Options go in the query, or beside the image in the form or the JSON.
    """
    image_request = await handler.read_request(request, timeout_ms)
    options = merge(query, image_request.options)
    detect_options = options.resolve(handler.info, handler.settings)
    media_type = preferred_image_type(request.headers.get("accept", ""))
    result = await handler.infer(image_request, detect_options, full_resolution=media_type is not None)
    if media_type is None:
        body = detect_response(result, options, request_context(request).request_id, handler.info.name)
        return handler.respond(request, result, body)
    detections = result.detections
    captions = detection_captions(detections.labels, detections.scores.tolist())
    drawing = handler.pipeline.images.draw_boxes(
        result.pixels,
        detections.boxes.numpy(),
        captions,
        detections.class_ids.tolist(),
        media_type,
        deadline=image_request.deadline,
    )
    body = await handler.write(image_request, drawing)
    return handler.respond(request, result, body, media_type)


@router.post(
    "/detect/batch",
    summary="Detect objects in several images",
    response_model=BatchResponse,
    responses=problems(400, 401, 408, 413, 422, 429, 503, 504),
    openapi_extra=batch_body(DetectionOptions),
)
async def detect_batch(
    request: Request, handler: Handler, query: Annotated[DetectionOptions, Query()], timeout_ms: TimeoutMs = None
) -> Response:
    """Send up to 32 file fields `image`. Each gets a result as of `/detect` or a problem, in their order."""
    image_request = await handler.read_request(request, timeout_ms)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise BadRequest("Send the images as multipart/form-data, each in a file field `image`.")
    if len(image_request.images) > MAX_IMAGES:
        raise BadOption(
            f"There are {len(image_request.images)} images; send at most {MAX_IMAGES} in a request.",
            fields=[{"name": "image", "problem": f"at most {MAX_IMAGES}"}],
        )
    options = merge(query, image_request.options)
    detect_options = options.resolve(handler.info, handler.settings)
    if detect_options.regions is not None:
        raise option_error("regions", "they belong to one image; send it to POST /detect")
    context = request_context(request)

    async def detect_one(image: bytes) -> bytes:
        try:
            result = await handler.infer_image(image_request, image, detect_options)
        except ServiceError as error:  # of this image alone
            return orjson.dumps(problem_document(error, context.request_id))
        body = detect_response(result, options, context.request_id, handler.info.name)
        return add_timings(body, handler.record_timings(result))

    results = await handler.for_each_image(image_request, detect_one)
    context.log_fields.update(images=len(results))
    body = b'{"request_id":%b,"results":[%b]}' % (orjson.dumps(context.request_id), b",".join(results))
    return Response(body, media_type=JSON)
