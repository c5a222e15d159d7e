"""The Open Inference Protocol v2 (KServe, Triton): metadata, health and ``infer``, with its binary extension.

One input, ``image``: BYTES [N], encoded pictures, or UINT8 [H, W, 3] or [1, H, W, 3], an RGB picture. Four outputs, all
pictures' detections one after the other: boxes FP32 [D, 4] xyxy in pixels, scores FP32 [D], class_ids INT64 [D], labels
BYTES [D]; and counts INT64 [N], how many of them are each picture's. ``parameters`` of the request are the options of
``POST /detect``.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response

from service.api.compat import receive_raw, speaking
from service.api.compat.tensors import HEADER_LENGTH, InferRequest, read_request, write_answer
from service.api.dependencies import Keyed, Served
from service.api.openapi import BINARY, any_body, problems
from service.api.responses import Seen
from service.api.routes.detect import MAX_PICTURES, finish
from service.api.schemas import Options, merge
from service.errors import ServiceError

router = APIRouter(prefix="/v2", tags=["dialects"], dependencies=[Depends(speaking(lambda detail: {"error": detail}))])

INPUTS = [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
OUTPUTS = [
    {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},
    {"name": "scores", "datatype": "FP32", "shape": [-1]},
    {"name": "class_ids", "datatype": "INT64", "shape": [-1]},
    {"name": "labels", "datatype": "BYTES", "shape": [-1]},
    {"name": "counts", "datatype": "INT64", "shape": [-1]},
]


class NoSuchModel(ServiceError):
    """The address names another model than is served."""

    status, code = 404, "no_such_model"


def _known(name: str, pipeline: Served) -> None:
    if name != pipeline.info.name:
        raise NoSuchModel(f"There is no model {name[:60]!r}; there is {pipeline.info.name!r}.")


Known = Depends(_known)


@router.get("", summary="OIP: the server", dependencies=[Keyed], responses=problems(401))
async def server() -> dict[str, Any]:
    """Name, version and extensions."""
    version = importlib.metadata.version("frcnn-service")
    return {"name": "frcnn-service", "version": version, "extensions": ["binary_tensor_data"]}


@router.get("/health/live", summary="OIP: is the server alive?")
async def live() -> dict[str, bool]:
    """As ``/livez``."""
    return {"live": True}


@router.get("/health/ready", summary="OIP: is the server ready?", responses=problems(503))
@router.get(
    "/models/{name}/ready", summary="OIP: is the model ready?", dependencies=[Known], responses=problems(404, 503)
)
@router.get("/models/{name}/versions/1/ready", include_in_schema=False, dependencies=[Known])
async def ready(pipeline: Served) -> dict[str, bool]:
    """As ``/readyz``."""
    with pipeline.batcher.visit():
        return {"ready": True}


@router.get(
    "/models/{name}",
    summary="OIP: the model's inputs and outputs",
    dependencies=[Keyed, Known],
    responses=problems(401, 404),
)
@router.get("/models/{name}/versions/1", include_in_schema=False, dependencies=[Keyed, Known])
async def metadata(pipeline: Served) -> dict[str, Any]:
    """Tensors by name, type and shape."""
    return {"name": pipeline.info.name, "versions": ["1"], "platform": "pytorch", "inputs": INPUTS, "outputs": OUTPUTS}


@router.post(
    "/models/{name}/infer",
    summary="OIP: infer",
    dependencies=[Known],
    responses={
        200: {
            "description": "Tensors: as JSON, or with the binary extension where that was asked for",
            "content": {"application/octet-stream": {"schema": BINARY}},
        },
        **problems(),
        **problems(404),
    },
    openapi_extra=any_body(
        {
            "application/json": {
                "id": {"type": "string"},
                "inputs": {"type": "array", "items": {"type": "object"}, "minItems": 1, "maxItems": 1},
                "outputs": {"type": "array", "items": {"type": "object"}},
                "parameters": {"type": "object"},
            },
            "application/octet-stream": BINARY,
        },
        required=("inputs",),
    ),
)
@router.post("/models/{name}/versions/1/infer", include_in_schema=False, dependencies=[Known])
async def infer(request: Request, pipeline: Served) -> Response:
    """Tensors in and out, as JSON or binary."""
    visit = await receive_raw(pipeline, request)
    header = request.headers.get(HEADER_LENGTH)
    asked: InferRequest = await pipeline.in_thread(
        read_request, visit.upload.pictures[0], header, MAX_PICTURES, pipeline.settings.max_pixels
    )
    wanted = merge(Options(), asked.options).resolve(pipeline.info, pipeline.settings)
    gate = asyncio.Semaphore(min(pipeline.settings.max_batch, pipeline.settings.max_queue))

    async def one(picture: bytes) -> Seen:
        async with gate:
            return await pipeline.look(visit, picture, wanted)

    async def every() -> list[Seen]:
        # Here a request is one answer: the first picture that fails fails it, and the rest is dropped.
        tasks = [asyncio.ensure_future(one(picture)) for picture in asked.pictures]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    seen = await pipeline.attend(visit, every)
    found = [each.detections for each in seen]
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "boxes": np.concatenate([f.boxes.numpy() for f in found]).astype(np.float32),
        "scores": np.concatenate([f.scores.numpy() for f in found]).astype(np.float32),
        "class_ids": np.concatenate([f.class_ids.numpy() for f in found]).astype(np.int64),
        "labels": np.array([label.encode() for f in found for label in f.labels], dtype=object),
        "counts": np.array([len(f) for f in found], dtype=np.int64),
    }
    body, headers = write_answer(asked, pipeline.info.name, tensors)
    for each in seen:
        finish(pipeline, each)
    return Response(body, headers=headers)
