"""The Open Inference Protocol v2 (KServe, Triton): metadata, health and ``infer``, with its binary extension.

One input, ``image``: BYTES [N], encoded images, or UINT8 [H, W, 3] or [1, H, W, 3], an RGB image. Four outputs, the
detections of all images one after the other: boxes FP32 [D, 4] xyxy in pixels, scores FP32 [D], class_ids INT64 [D],
labels BYTES [D]; and counts INT64 [N], how many of them each image has. ``parameters`` of the request are the options
of ``POST /detect``.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from service.api.compat.tensors import (
    HEADER_LENGTH,
    INPUT,
    MAX_ID,
    MAX_OUTPUTS,
    OUTPUTS,
    parse_infer_request,
    write_infer_response,
)
from service.api.context import ProblemMembers
from service.api.dependencies import Handler, RequireKey, TimeoutMs
from service.api.openapi import BINARY, any_body, problems
from service.api.options import MAX_IMAGES, DetectionOptions, merge
from service.errors import NoSuchModel
from service.inference.pipeline import ImageResult

router = APIRouter(
    prefix="/v2", tags=["compat"], dependencies=[Depends(ProblemMembers(lambda detail: {"error": detail}))]
)


def _check_model(name: str, handler: Handler) -> None:
    if name != handler.info.name:
        raise NoSuchModel(f"There is no model {name[:60]!r}; there is {handler.info.name!r}.")


CheckModel = Depends(_check_model)


@router.get("", summary="OIP: the server", dependencies=[RequireKey], responses=problems(401))
async def server() -> dict[str, Any]:
    """Return the server's name, version and extensions."""
    version = importlib.metadata.version("frcnn-service")
    return {"name": "frcnn-service", "version": version, "extensions": ["binary_tensor_data"]}


@router.get("/health/live", summary="OIP: is the server alive?")
async def live() -> dict[str, bool]:
    """Return 200 as long as the event loop runs, as `/livez` does."""
    return {"live": True}


@router.get("/health/ready", summary="OIP: is the server ready?", responses=problems(503))
@router.get(
    "/models/{name}/ready", summary="OIP: is the model ready?", dependencies=[CheckModel], responses=problems(404, 503)
)
@router.get("/models/{name}/versions/1/ready", include_in_schema=False, dependencies=[CheckModel])
async def ready(handler: Handler) -> dict[str, bool]:
    """Return 200 while the service accepts requests, and 503 before and after."""
    handler.pipeline.batcher.check_serving()
    return {"ready": True}


@router.get(
    "/models/{name}",
    summary="OIP: the model's inputs and outputs",
    dependencies=[RequireKey, CheckModel],
    responses=problems(401, 404),
)
@router.get("/models/{name}/versions/1", include_in_schema=False, dependencies=[RequireKey, CheckModel])
async def metadata(handler: Handler) -> dict[str, Any]:
    """Return the model's inputs and outputs: name, type and shape of each tensor."""
    return {"name": handler.info.name, "versions": ["1"], "platform": "pytorch", "inputs": [INPUT], "outputs": OUTPUTS}


@router.post(
    "/models/{name}/infer",
    summary="OIP: infer",
    dependencies=[CheckModel],
    responses={
        200: {
            "description": "Tensors: as JSON, or with the binary extension where the request chooses it",
            "content": {"application/octet-stream": {"schema": BINARY}},
        },
        **problems(),
        **problems(404),
    },
    openapi_extra=any_body(
        {
            "application/json": {
                "id": {"type": "string", "maxLength": MAX_ID},
                "inputs": {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": 1},
                "outputs": {"type": "array", "items": {"type": "object"}, "maxItems": MAX_OUTPUTS},
                "parameters": {"type": "object"},
            },
            "application/octet-stream": BINARY,
        },
        required=("inputs",),
    ),
)
@router.post("/models/{name}/versions/1/infer", include_in_schema=False, dependencies=[CheckModel])
async def infer(request: Request, handler: Handler, timeout_ms: TimeoutMs = None) -> Response:
    """Send one input tensor and get the output tensors, as JSON or binary."""
    image_request = await handler.read_request(request, timeout_ms, raw=True)
    infer_request = await handler.pipeline.run_in_thread(
        parse_infer_request,
        image_request.images[0],
        request.headers.get(HEADER_LENGTH),
        MAX_IMAGES,
        handler.settings.max_pixels,
    )
    image_request = replace(image_request, images=infer_request.images)
    options = merge(DetectionOptions(), infer_request.options).resolve(handler.info, handler.settings)

    async def infer_one(image: bytes) -> ImageResult:
        return await handler.infer_image(image_request, image, options)

    # The protocol has one response for all images, so the first failure fails the request.
    results = await handler.for_each_image(image_request, infer_one)
    detections = [result.detections for result in results]
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "boxes": np.concatenate([each.boxes.numpy() for each in detections]).astype(np.float32),
        "scores": np.concatenate([each.scores.numpy() for each in detections]).astype(np.float32),
        "class_ids": np.concatenate([each.class_ids.numpy() for each in detections]).astype(np.int64),
        "labels": np.array([label.encode() for each in detections for label in each.labels], dtype=object),
        "counts": np.array([len(each) for each in detections], dtype=np.int64),
    }
    body, headers = write_infer_response(infer_request, handler.info.name, tensors)
    for result in results:
        handler.record_timings(result)
    return Response(body, headers=headers)
