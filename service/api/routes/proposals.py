"""``POST /proposals``: the RPN's proposals."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from model.structures import DetectOptions, Trace
from service.api.accept import preferred_image_type
from service.api.context import request_context
from service.api.dependencies import Handler, TimeoutMs
from service.api.openapi import image_body, image_response, problems
from service.api.options import ProposalOptions, merge
from service.api.responses import heat_maps, proposals_response, select_proposals
from service.api.schemas import ProposalsResponse
from service.images.pool import ImagePool
from service.inference.pipeline import ImageResult
from service.rendering.boxes import proposal_captions

router = APIRouter(tags=["region proposals"])


@router.post(
    "/proposals",
    summary="See the region proposals of an image",
    response_model=ProposalsResponse,
    responses={200: image_response("The proposals by falling objectness"), **problems()},
    openapi_extra=image_body(ProposalOptions),
)
async def proposals(
    request: Request, handler: Handler, query: Annotated[ProposalOptions, Query()], timeout_ms: TimeoutMs = None
) -> Response:
    """Send the image as to `/detect`, and get the proposals that the RoI head gets, or the candidates before NMS.

    Each has its anchor, the offsets from it and its level; `stage_counts` says how many anchors of each level were left
    after each step. As an image, the proposals are drawn in colours by level, or with `view=objectness` the heat map of
    every level lies over a copy of the image.
    """
    image_request = await handler.read_request(request, timeout_ms)
    options = merge(query, image_request.options)
    options.check_level(handler.info)
    detect_options = DetectOptions(proposals=handler.info.max_proposals, trace=True)
    media_type = preferred_image_type(request.headers.get("accept", ""))
    result = await handler.infer(image_request, detect_options, full_resolution=media_type is not None)
    trace = result.detections.trace
    assert trace is not None
    if media_type is None:
        request_id, model = request_context(request).request_id, handler.info.name
        writing = handler.pipeline.run_in_thread(_write, result, trace, options, request_id, model)
        body = await handler.write(image_request, writing)
        return handler.respond(request, result, body)
    drawing = _draw(handler.pipeline.images, result, trace, options, media_type, image_request.deadline)
    body = await handler.write(image_request, drawing)
    return handler.respond(request, result, body, media_type)


def _write(result: ImageResult, trace: Trace, options: ProposalOptions, request_id: str, model: str) -> bytes:
    return proposals_response(result, trace, options, request_id, model)


def _draw(
    images: ImagePool, result: ImageResult, trace: Trace, options: ProposalOptions, media_type: str, deadline: float
) -> Coroutine[Any, Any, bytes]:
    if options.view == "objectness":
        return images.draw_heat_maps(result.pixels, heat_maps(trace, options), media_type, deadline=deadline)
    proposals = select_proposals(trace, options).proposals
    levels = proposals.levels.tolist()
    captions = proposal_captions(levels, proposals.objectness.tolist())
    return images.draw_boxes(result.pixels, proposals.boxes.numpy(), captions, levels, media_type, deadline=deadline)
