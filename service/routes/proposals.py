"""``POST /proposals``: what the RPN saw."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from model.structures import DetectOptions, Proposals
from service.answers import Seen, proposals_answer, select, server_timing, with_timings, write
from service.rendering import draw, encode, wanted_picture
from service.routes.dependencies import Served, TimeoutMs
from service.routes.describe import picture_answer, picture_body, problems
from service.routes.detect import finish, single
from service.schemas import ProposalOptions, ProposalsAnswer, merge

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
    """The boxes that the RPN hands to the detector, each with its anchor, the offsets from it and its pyramid level.

    The picture is sent as to `/detect`.
    """
    visit = await pipeline.receive(request, timeout_ms)
    options = merge(query, visit.upload.options)
    # All of them: the filters look at every proposal, the limit cuts only then.
    wanted = DetectOptions(proposals=pipeline.info.max_proposals)
    picture = single(visit)
    seen = await pipeline.attend(visit, lambda: pipeline.look(visit, picture, wanted))
    writing = time.monotonic()
    assert seen.detections.proposals is not None
    chosen, count = select(seen.detections.proposals, options)
    media_type = wanted_picture(request.headers.get("accept", ""))
    if media_type is None:
        head = proposals_answer(seen, chosen, count, options, request.scope["request_id"], pipeline.info.name)
        written = write(head)
        timings = finish(pipeline, seen, writing)
        body, media_type = with_timings(written, timings), "application/json"
    else:
        body = await pipeline.in_thread(_drawn, seen, chosen, media_type)
        timings = finish(pipeline, seen, writing)
    request.scope["notes"].update(batch_size=seen.detections.batch_size, timings_ms=timings)
    return Response(body, media_type=media_type, headers={"Server-Timing": server_timing(timings)})


def _drawn(seen: Seen, chosen: Proposals, media_type: str) -> bytes:
    """Boxes only, coloured by level: a hundred captions would hide the picture."""
    return encode(draw(seen.picture, chosen.boxes.numpy(), [""] * len(chosen), chosen.levels.tolist()), media_type)
