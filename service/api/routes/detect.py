"""``POST /detect`` and ``POST /detect/batch``."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response

from service.api.accept import preferred_image_type
from service.api.dependencies import Served, TimeoutMs
from service.api.openapi import batch_body, picture_answer, picture_body, problems
from service.api.responses import Seen, detect_answer, milliseconds, server_timing, with_timings, write
from service.api.schemas import BatchAnswer, DetectAnswer, Options, bad, merge
from service.errors import BadOption, BadRequest, ServiceError, problem
from service.inference.pipeline import Pipeline, Visit
from service.rendering.boxes import draw_detections, encode

MAX_PICTURES = 32

router = APIRouter(tags=["detection"])


@router.post(
    "/detect",
    summary="Find objects in a picture",
    response_model=DetectAnswer,
    responses={200: picture_answer("What was found, by falling score"), **problems()},
    openapi_extra=picture_body(Options),
)
async def detect(
    request: Request, pipeline: Served, query: Annotated[Options, Query()], timeout_ms: TimeoutMs = None
) -> Response:
    """Send the picture as the raw body, as the file field `image` of a form, or in base64 as `image` in JSON.

    Options go in the query, or beside the picture in the form or the JSON.
    """
    visit = await pipeline.receive(request, timeout_ms)
    options = merge(query, visit.upload.options)
    wanted = options.resolve(pipeline.info, pipeline.settings)
    picture = single(visit)
    media_type = preferred_image_type(request.headers.get("accept", ""))
    seen = await pipeline.attend(visit, lambda: pipeline.look(visit, picture, wanted, whole=media_type is not None))
    if media_type is None:
        body, timings = answer(pipeline, visit, seen, options)
        media_type = "application/json"
    else:
        body = await pipeline.in_thread(_drawn, seen, media_type)
        timings = finish(pipeline, seen)
    request.scope["notes"].update(batch_size=seen.detections.batch_size, timings_ms=timings)
    return Response(body, media_type=media_type, headers={"Server-Timing": server_timing(timings)})


@router.post(
    "/detect/batch",
    summary="Find objects in several pictures",
    response_model=BatchAnswer,
    responses=problems(400, 401, 408, 413, 422, 429, 503, 504),
    openapi_extra=batch_body(Options),
)
async def detect_batch(
    request: Request, pipeline: Served, query: Annotated[Options, Query()], timeout_ms: TimeoutMs = None
) -> Response:
    """Send up to 32 file fields `image`. Each gets a result as of `/detect` or a problem, in their order."""
    visit = await pipeline.receive(request, timeout_ms)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise BadRequest("Send the pictures as multipart/form-data, each in a file field `image`.")
    if len(visit.upload.pictures) > MAX_PICTURES:
        raise BadOption(
            f"There are {len(visit.upload.pictures)} pictures; send at most {MAX_PICTURES} in a request.",
            fields=[{"name": "image", "problem": f"at most {MAX_PICTURES}"}],
        )
    options = merge(query, visit.upload.options)
    wanted = options.resolve(pipeline.info, pipeline.settings)
    if wanted.regions is not None:
        raise bad("regions", "they belong to one picture; send it to POST /detect")
    # So many at once keep the device busy; more would only take places from others, and memory.
    gate = asyncio.Semaphore(min(pipeline.settings.max_batch, pipeline.settings.max_queue))

    async def one(picture: bytes) -> bytes:
        try:
            async with gate:
                seen = await pipeline.look(visit, picture, wanted)
            return answer(pipeline, visit, seen, options)[0]
        except ServiceError as error:
            return orjson.dumps(problem(error, request.scope["request_id"]))

    async def every() -> list[bytes]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(picture)) for picture in visit.upload.pictures]
        return [task.result() for task in tasks]

    results = await pipeline.attend(visit, every)
    request.scope["notes"].update(pictures=len(results))
    body = b'{"request_id":%b,"results":[%b]}' % (orjson.dumps(request.scope["request_id"]), b",".join(results))
    return Response(body, media_type="application/json")


def single(visit: Visit) -> bytes:
    """The one picture of a visit; raises ``BadOption`` for several."""
    if len(visit.upload.pictures) != 1:
        raise BadOption(
            f"There are {len(visit.upload.pictures)} pictures; send one, or use POST /detect/batch.",
            fields=[{"name": "image", "problem": "one picture only"}],
        )
    return visit.upload.pictures[0]


def answer(pipeline: Pipeline, visit: Visit, seen: Seen, options: Options) -> tuple[bytes, dict[str, float]]:
    """The JSON for ``seen``, and its timings in milliseconds."""
    written = write(detect_answer(seen, options, visit.request.scope["request_id"], pipeline.info.name))
    timings = finish(pipeline, seen)
    return with_timings(written, timings), timings


def finish(pipeline: Pipeline, seen: Seen) -> dict[str, float]:
    """Close the book on a picture whose answer is written: its timings in milliseconds, also counted.

    ``serialize`` is all the time since the device was done with it: so the stages together are the total.
    """
    total = time.monotonic() - seen.began
    seconds = seen.seconds | {"serialize": max(0.0, total - sum(seen.seconds.values())), "total": total}
    found = seen.detections
    pipeline.metrics.picture(seconds, len(found), None if found.proposals is None else len(found.proposals))
    return milliseconds(seconds)


def _drawn(seen: Seen, media_type: str) -> bytes:
    return encode(draw_detections(seen.picture.pixels, seen.detections), media_type)
