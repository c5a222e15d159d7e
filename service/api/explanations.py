"""The options of ``POST /explain``, its response model, and the JSON of its explanations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field

from model.explain.stages import STAGES, AnchorFacts, DetectionFacts, Explanation, ProposalFacts, Stage, Suppressor
from model.structures import DetectorInfo
from service.api.options import BoxNotation, Thresholds, class_ids, option_error
from service.api.regions import MAX_COORDINATE
from service.api.responses import convert_boxes, response_head, to_json
from service.api.schemas import Cell, ResponseHead
from service.errors import BadOption
from service.inference.pipeline import ImageResult

MAX_BOXES = 100
_MARGIN = 1.0  # pixels that a box may reach out of the image, for clients that round


def _parse_list(value: Any) -> Any:
    """Parse the JSON text of a list, ``[...]``, alone in its field: a form has no lists."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0] if isinstance(value[0], str) and value[0].lstrip().startswith("[") else value
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"must be JSON, such as [[10, 20, 110, 220]] ({error})") from None
    return value


Coordinate = Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE, allow_inf_nan=False)]
Corners = Annotated[list[Coordinate], Field(min_length=4, max_length=4, fail_fast=True)]


class ExplainQuery(Thresholds):
    """The options of ``POST /explain`` that fit into a query."""

    iou: float = Field(
        0.5, ge=0.05, le=1, allow_inf_nan=False, description="the IoU at which a box counts as lying on an expected one"
    )


class ExplainOptions(ExplainQuery):
    """All options of ``POST /explain``; ``boxes`` and ``labels`` are JSON text in a form."""

    boxes: Annotated[
        list[Corners], Field(min_length=1, max_length=MAX_BOXES, fail_fast=True), BeforeValidator(_parse_list)
    ] = Field(description="what should have been found, written as `box_format` says")
    labels: Annotated[
        list[int | str | None] | None, Field(max_length=MAX_BOXES, fail_fast=True), BeforeValidator(_parse_list)
    ] = Field(None, description="a class each, by name or id; null where any class fits")

    def class_names(self, info: DetectorInfo) -> list[str | None]:
        """Return the class name that each box should have, None for any. Raises ``BadOption``."""
        if self.labels is None:
            return [None] * len(self.boxes)
        if len(self.labels) != len(self.boxes):
            raise option_error(
                "labels", f"there are {len(self.labels)} for {len(self.boxes)} boxes; give one each, or none"
            )
        ids = iter(class_ids([label for label in self.labels if label is not None], info, "labels"))
        return [None if label is None else info.classes[next(ids)] for label in self.labels]

    def check_boxes(self, width: int, height: int) -> None:
        """Raise ``BadOption`` for a box that does not lie in an image of that size."""
        self.pixel_boxes(width, height)

    def pixel_boxes(self, width: int, height: int) -> NDArray[np.float32]:
        """Return the boxes as corners in pixels, float32 [G, 4], clipped to that image size. Raises ``BadOption``."""
        boxes = np.array(self.boxes, dtype=np.float64)
        if self.normalized:
            boxes *= [width, height, width, height]
        if self.box_format != "xyxy":
            corner = boxes[:, :2] - (boxes[:, 2:] / 2 if self.box_format == "cxcywh" else 0)
            boxes = np.concatenate([corner, corner + boxes[:, 2:]], axis=1)
        size = np.array([width, height] * 2)
        for number, (sent, box) in enumerate(zip(self.boxes, boxes, strict=True)):
            if (box < -_MARGIN).any() or (box > size + _MARGIN).any():
                raise _bad_box(number, sent, f"reaches out of the image, which is {width} x {height} pixels")
        clipped = boxes.clip(0, size).astype(np.float32)
        for number, (sent, box) in enumerate(zip(self.boxes, clipped, strict=True)):
            if box[2] <= box[0] or box[3] <= box[1]:
                raise _bad_box(
                    number, sent, "has no area; x2 must be above x1 and y2 above y1, as must width and height"
                )
        return clipped


def _bad_box(number: int, box: Sequence[float], problem: str) -> BadOption:
    return option_error("boxes", f"box {number}, {[round(value, 2) for value in box]}, {problem}")


class ExplainedAnchor(BaseModel):
    """An anchor: its cell, its shape, and the RPN's objectness for it."""

    index: int
    level: int
    cell: Cell = Field(description="row and column on the level's map")
    size: float = Field(description="as configured, pixels of the canvas")
    ratio: float = Field(description="height over width")
    box: list[float]
    iou: float = Field(description="of the anchor itself with the expected box")
    objectness: float
    rank: int = Field(description="0-based rank by objectness on its level")
    level_anchors: int


class ExplainedSuppressor(BaseModel):
    """The box for which NMS dropped another."""

    index: int | None = Field(
        description="its index among the proposals or detections; null where a limit dropped it later"
    )
    score: float
    iou: float
    box: list[float]


class ExplainedProposal(BaseModel):
    """The RPN's box that got furthest, or with `no_anchor` the closest one."""

    index: int | None = Field(description="its index among the final proposals, null where it was dropped")
    anchor: ExplainedAnchor
    box: list[float]
    iou: float
    suppressed_by: ExplainedSuppressor | None


class ExplainedDetection(BaseModel):
    """The RoI head's result for the best proposal, for the expected class or the likeliest."""

    index: int | None = Field(description="its index in the response of `/detect`, null where it was dropped")
    proposal: int
    class_id: int
    label: str
    score: float
    box: list[float]
    iou: float
    top_label: str = Field(description="the proposal's likeliest class, background included")
    top_score: float
    class_scores: list[float] = Field(description="by class id, background first")
    suppressed_by: ExplainedSuppressor | None


class ExplainedBox(BaseModel):
    """How far one expected box got."""

    stage: Stage = Field(description="; ".join(f"`{stage}`: {meaning}" for stage, meaning in STAGES.items()))
    sentence: str
    box: list[float]
    label: str | None
    anchor: ExplainedAnchor = Field(description="the one that fits best, before the RPN moves it")
    proposal: ExplainedProposal
    detection: ExplainedDetection | None = Field(description="null where no proposal got that far")


class ExplainResponse(ResponseHead):
    """One explanation for each expected box, in their order."""

    iou: float
    explanations: list[ExplainedBox]


def explain_response(
    result: ImageResult, explanations: Sequence[Explanation], options: ExplainOptions, request_id: str, model: str
) -> bytes:
    """Write the JSON body of ``POST /explain`` but for its timings."""
    writer = _Writer(result, options)
    return to_json(
        response_head(result, options, request_id, model)
        | {
            "iou": options.iou,
            "explanations": [writer.write_explanation(explanation) for explanation in explanations],
        }
    )


class _Writer:
    """Write facts as JSON: boxes in the requested notation, numbers as float32, in as few digits as are exact."""

    def __init__(self, result: ImageResult, notation: BoxNotation) -> None:
        self.result, self.notation = result, notation

    def write_explanation(self, explanation: Explanation) -> dict[str, Any]:
        return {
            "stage": explanation.stage,
            "sentence": explanation.sentence,
            "box": self.write_box(explanation.box),
            "label": explanation.label,
            "anchor": self.write_anchor(explanation.anchor),
            "proposal": self.write_proposal(explanation.proposal),
            "detection": None if explanation.detection is None else self.write_detection(explanation.detection),
        }

    def write_anchor(self, facts: AnchorFacts) -> dict[str, Any]:
        members = self._members(facts)
        return members | {"cell": (members.pop("row"), members.pop("column"))}

    def write_proposal(self, facts: ProposalFacts) -> dict[str, Any]:
        return self._members(facts) | {
            "anchor": self.write_anchor(facts.anchor),
            "suppressed_by": self.write_suppressor(facts.suppressed_by),
        }

    def write_detection(self, facts: DetectionFacts) -> dict[str, Any]:
        scores = np.array(facts.class_scores, dtype=np.float32)
        return self._members(facts) | {
            "class_scores": scores,
            "suppressed_by": self.write_suppressor(facts.suppressed_by),
        }

    def write_suppressor(self, facts: Suppressor | None) -> dict[str, Any] | None:
        return None if facts is None else self._members(facts)

    def _members(self, facts: AnchorFacts | ProposalFacts | DetectionFacts | Suppressor) -> dict[str, Any]:
        """Return the facts by name; the caller replaces those that are objects themselves."""
        numbers = {
            name: np.float32(value) if isinstance(value, float) else value for name, value in vars(facts).items()
        }
        return numbers | {"box": self.write_box(facts.box)}

    def write_box(self, box: Sequence[float]) -> NDArray[np.float32]:
        corners: NDArray[np.float32] = convert_boxes(np.array([box], dtype=np.float32), self.result, self.notation)[0]
        return corners
