"""``POST /explain``: why was it missed?"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.dependencies import Served, TimeoutMs
from service.api.explanations import ExplainAnswer, ExplainOptions, ExplainQuery, explain_answer
from service.api.openapi import picture_body, problems
from service.api.responses import Seen, server_timing, with_timings, write
from service.api.routes.detect import finish, single
from service.api.schemas import merge_into

router = APIRouter(tags=["region proposals"])


def _body() -> dict[str, Any]:
    """The picture and its boxes: a raw picture has no room for them."""
    extra = picture_body(ExplainOptions)
    forms = extra["requestBody"]["content"]
    del forms["image/*"]
    for form in forms.values():
        form["schema"]["required"] = ["image", "boxes"]
    return extra


@router.post(
    "/explain",
    summary="Ask why an object was missed",
    response_model=ExplainAnswer,
    responses={200: {"description": "How far each expected box came"}, **problems()},
    openapi_extra=_body(),
)
async def explain(
    request: Request, pipeline: Served, query: Annotated[ExplainQuery, Query()], timeout_ms: TimeoutMs = None
) -> Response:
    """Send the picture with the `boxes` that should have been found, and their `labels` if it matters.

    Each is followed from the anchors to the answer: `stage` is the word for what became of it, `sentence` says it for
    a person. As a form: the file `image`, and `boxes` as JSON text; or all of it as JSON. The detector looks once,
    however many boxes there are, with the same options as `/detect`.
    """
    visit = await pipeline.receive(request, timeout_ms)
    options = merge_into(ExplainOptions, query, visit.upload.options)
    names = options.names(pipeline.info)
    wanted = replace(options.thresholds(pipeline.settings), trace=True)
    picture = single(visit)
    seen = await pipeline.attend(visit, lambda: pipeline.look(visit, picture, wanted, check=options.pixels))
    name = pipeline.info.name
    written = await pipeline.in_thread(_explained, seen, options, names, request.scope["request_id"], name)
    timings = finish(pipeline, seen)
    request.scope["notes"].update(batch_size=seen.detections.batch_size, timings_ms=timings)
    return Response(
        with_timings(written, timings),
        media_type="application/json",
        headers={"Server-Timing": server_timing(timings)},
    )


def _explained(seen: Seen, options: ExplainOptions, names: list[str | None], request_id: str, model: str) -> bytes:
    import torch

    from model.detector import explain as explain_boxes  # heavy; the worker has loaded it long since

    trace = seen.detections.trace
    assert trace is not None
    boxes = torch.from_numpy(options.pixels(seen.width, seen.height))
    explanations = explain_boxes(trace, boxes, names, iou=options.iou)
    return write(explain_answer(seen, explanations, options, request_id, model))
