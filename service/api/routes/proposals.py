"""``POST /proposals``: what the RPN saw."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from model.structures import DetectOptions, Trace
from service.api.accept import preferred_image_type
from service.api.dependencies import Served, TimeoutMs
from service.api.openapi import picture_answer, picture_body, problems
from service.api.responses import Seen, heat_maps, proposals_answer, select, server_timing, with_timings, write
from service.api.routes.detect import finish, single
from service.api.schemas import ProposalOptions, ProposalsAnswer, merge
from service.inference.pipeline import Visit
from service.rendering.boxes import draw_proposals, encode
from service.rendering.heatmap import draw_heat_maps

router = APIRouter(tags=["region proposals"])


@router.post(
    "/proposals",
    summary="See the region proposals of a picture",
    response_model=ProposalsAnswer,
    responses={200: picture_answer("The proposals by falling objectness"), **problems()},
    openapi_extra=picture_body(ProposalOptions),
)
async def proposals(
    request: Request, pipeline: Served, query: Annotated[ProposalOptions, Query()], timeout_ms: TimeoutMs = None
) -> Response:
    """The boxes that the RPN hands to the detector, or its candidates before NMS: each with its anchor, the offsets
    from it and its level; and how many anchors of each level were left after each cut.

    The picture is sent as to `/detect`. As a picture, the proposals are drawn in colours by level, or with
    `view=objectness` the heat map of every level lies over a copy of the picture.
    """
    visit = await pipeline.receive(request, timeout_ms)
    options = merge(query, visit.upload.options)
    options.check_level(pipeline.info)
    wanted = DetectOptions(proposals=pipeline.info.max_proposals, trace=True)
    picture = single(visit)
    media_type = preferred_image_type(request.headers.get("accept", ""))
    seen = await pipeline.attend(visit, lambda: pipeline.look(visit, picture, wanted, whole=media_type is not None))
    trace = seen.detections.trace
    assert trace is not None
    if media_type is None:
        written = await pipeline.in_thread(_written, seen, trace, options, visit, pipeline.info.name)
        timings = finish(pipeline, seen)
        body, media_type = with_timings(written, timings), "application/json"
    else:
        body = await pipeline.in_thread(_drawn, seen, trace, options, media_type)
        timings = finish(pipeline, seen)
    request.scope["notes"].update(batch_size=seen.detections.batch_size, timings_ms=timings)
    return Response(body, media_type=media_type, headers={"Server-Timing": server_timing(timings)})


def _written(seen: Seen, trace: Trace, options: ProposalOptions, visit: Visit, model: str) -> bytes:
    selection = select(trace, options)
    return write(proposals_answer(seen, trace, selection, options, visit.request.scope["request_id"], model))


def _drawn(seen: Seen, trace: Trace, options: ProposalOptions, media_type: str) -> bytes:
    if options.view == "objectness":
        return encode(draw_heat_maps(seen.picture.pixels, heat_maps(trace, options)), media_type)
    return encode(draw_proposals(seen.picture.pixels, select(trace, options).proposals), media_type)
