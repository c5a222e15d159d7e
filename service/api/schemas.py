"""The response models of several routes, for OpenAPI. ``responses.py`` builds the JSON from arrays, not from these.

A model that one route alone uses is in that route's file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.api.options import BoxFormat
from service.metrics import STAGES

# Lists, not tuples: many tools that read OpenAPI documents do not support JSON Schema's tuples.
Cell = Annotated[list[int], Field(min_length=2, max_length=2)]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class ImageSize(BaseModel):
    """The image as shown, in pixels: the frame of all boxes."""

    width: int
    height: int


class ProposalList(BaseModel):
    """RPN proposals by falling objectness, one entry of each list a proposal; boxes and anchors share the frame."""

    boxes: list[list[float]]
    objectness: list[float]
    levels: list[int]
    ranks: list[int] = Field(description="0-based place of the anchor by objectness among its level's anchors")
    anchors: list[list[float]]
    deltas: list[list[float]] = Field(description="tx, ty, tw, th from the anchor to the box")
    cells: list[Cell] = Field(description="row and column of the anchor's cell on its level's map")
    sizes: list[float] = Field(description="the anchor's size as configured, in pixels of the canvas")
    ratios: list[float] = Field(description="the anchor's height over its width")


class ResponseHead(BaseModel):
    """The members that every response about an image has."""

    request_id: str
    model: str
    image: ImageSize
    box_format: BoxFormat
    normalized: bool
    batch_size: int = Field(description="images in the batch that this one was part of")
    timings_ms: dict[str, float] = Field(description=", ".join((*STAGES, "total")))


class DetectResponse(ResponseHead):
    """The detections by falling score: entry i of each list is detection i."""

    boxes: list[list[float]]
    scores: list[float]
    labels: list[str]
    class_ids: list[int]
    proposals: ProposalList | None = None
    proposal_indices: list[int] | None = Field(
        None,
        description="with `proposals`: index of each detection's proposal; may be above the requested number",
    )


class StageCounts(BaseModel):
    """The number of anchors of a level that are left after each step of the RPN."""

    level: int
    anchors: int
    above_threshold: int
    after_top_k: int
    after_size: int
    after_nms: int
    kept: int


class ObjectnessMap(BaseModel):
    """The highest objectness among the anchors of each cell; origin and step in the frame of the boxes."""

    level: int
    values: list[list[float]] = Field(description="by row and column, each from 0 to 1")
    origin: Point = Field(description="x and y that the anchors of the first cell are centred on")
    step: Point = Field(description="x and y from a cell to the next")


class ProposalsResponse(ResponseHead, ProposalList):
    """The proposals of the RPN, and how it selected them."""

    stage: Literal["final", "pre_nms"]
    count: int = Field(description="proposals that passed the filters, before the limit")
    proposal_indices: list[int | None] = Field(
        description="index in the list that the RoI head gets, before any filter; null for what was dropped"
    )
    outcomes: list[Literal["low_objectness", "too_small", "rpn_nms", "proposal_limit", "kept"]] = Field(
        description="which step of the RPN dropped it, or kept"
    )
    stage_counts: list[StageCounts] = Field(description="one entry a level; no filter applies to it")
    maps: list[ObjectnessMap] | None = Field(None, description="with `view=objectness`: one entry a level")


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what went wrong and what to do, for a person")
    code: str = Field(description="the same, for machines")
    request_id: str
    errors: list[dict[str, str]] | None = Field(None, description="for 422: each option and what is wrong with it")


class BatchResponse(BaseModel):
    """One entry an image, in the order they were sent."""

    request_id: str
    results: list[DetectResponse | Problem]
