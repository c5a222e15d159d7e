"""What ``POST /explain`` takes beside a picture, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field

from model.explain.stages import STAGES, AnchorFacts, DetectionFacts, Explanation, ProposalFacts, Stage, Suppressor
from model.structures import DetectorInfo
from service.api.responses import Seen, head, in_frame
from service.api.schemas import Answer, Cell, Frame, Thresholds, bad, class_id
from service.errors import BadOption

MAX_BOXES = 100
_EDGE = 1.0  # pixels that a box may stick out of the picture, for clients that round


def _from_text(value: Any) -> Any:
    """A form has no lists: there they come as JSON text, ``[...]``, alone in the field."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0] if isinstance(value[0], str) and value[0].lstrip().startswith("[") else value
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"must be JSON, such as [[10, 20, 110, 220]] ({error})") from None
    return value


Corners = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]],
    Field(min_length=4, max_length=4),
]


class ExplainQuery(Thresholds):
    """The options of ``POST /explain`` that fit into a query."""

    iou: float = Field(
        0.5, ge=0.05, le=1, allow_inf_nan=False, description="a box lies on an expected one where they overlap by this"
    )


class ExplainOptions(ExplainQuery):
    """All its options: these come in the form (as JSON text) or in the JSON document."""

    boxes: Annotated[list[Corners], BeforeValidator(_from_text)] = Field(
        min_length=1, max_length=MAX_BOXES, description="what should have been found, written as `box_format` says"
    )
    labels: Annotated[list[int | str | None], BeforeValidator(_from_text)] | None = Field(
        None, max_length=MAX_BOXES, description="a class each, by name or id; null where any class would do"
    )

    def names(self, info: DetectorInfo) -> list[str | None]:
        """The class name that each box should have. Raises ``BadOption``."""
        if self.labels is None:
            return [None] * len(self.boxes)
        if len(self.labels) != len(self.boxes):
            raise bad("labels", f"there are {len(self.labels)} for {len(self.boxes)} boxes; give one each, or none")
        return [None if given is None else info.classes[class_id(given, info, "labels")] for given in self.labels]

    def pixels(self, width: int, height: int) -> NDArray[np.float32]:
        """The boxes as corners, float32 [G, 4], clipped to a picture of that size. Raises ``BadOption``."""
        boxes = np.array(self.boxes, dtype=np.float64)
        if self.normalized:
            boxes *= [width, height, width, height]
        if self.box_format != "xyxy":
            corner = boxes[:, :2] - (boxes[:, 2:] / 2 if self.box_format == "cxcywh" else 0)
            boxes = np.concatenate([corner, corner + boxes[:, 2:]], axis=1)
        size = np.array([width, height] * 2)
        for number, (given, box) in enumerate(zip(self.boxes, boxes, strict=True)):
            if (box < -_EDGE).any() or (box > size + _EDGE).any():
                raise _bad_box(number, given, f"reaches out of the picture, which is {width} x {height} pixels")
        clipped = boxes.clip(0, size).astype(np.float32)
        for number, (given, box) in enumerate(zip(self.boxes, clipped, strict=True)):
            if box[2] <= box[0] or box[3] <= box[1]:
                raise _bad_box(
                    number, given, "has no area; x2 must be above x1 and y2 above y1, as must width and height"
                )
        return clipped


def _bad_box(number: int, given: Sequence[float], problem: str) -> BadOption:
    return bad("boxes", f"box {number}, {[round(value, 2) for value in given]}, {problem}")


class AnchorAnswer(BaseModel):
    """An anchor: where it stands, its shape, and how likely the RPN holds it to be an object."""

    index: int
    level: int
    cell: Cell = Field(description="row and column on the level's map")
    size: float = Field(description="as configured, pixels of the canvas")
    ratio: float = Field(description="height over width")
    box: list[float]
    iou: float = Field(description="of the anchor itself with the expected box")
    objectness: float
    rank: int = Field(description="0-based place by objectness on its level")
    level_anchors: int


class SuppressorAnswer(BaseModel):
    """The box for which NMS dropped another."""

    index: int | None = Field(
        description="its place among the proposals or detections; null where a limit cut it later"
    )
    score: float
    iou: float
    box: list[float]


class ProposalAnswer(BaseModel):
    """The RPN's box that came furthest, or with `no_anchor` closest."""

    index: int | None = Field(description="its place among the final proposals, null where it was cut")
    anchor: AnchorAnswer
    box: list[float]
    iou: float
    suppressed_by: SuppressorAnswer | None


class DetectionAnswer(BaseModel):
    """What the detector made of the best proposal, for the expected class or the likeliest."""

    index: int | None = Field(description="its place in the answer of `/detect`, null where it was cut")
    proposal: int
    class_id: int
    label: str
    score: float
    box: list[float]
    iou: float
    top_label: str = Field(description="what the detector takes the proposal for, background included")
    top_score: float
    class_scores: list[float] = Field(description="by class id, background first")
    suppressed_by: SuppressorAnswer | None


class ExplanationAnswer(BaseModel):
    """How far one expected box came."""

    stage: Stage = Field(description="; ".join(f"`{stage}`: {meaning}" for stage, meaning in STAGES.items()))
    sentence: str
    box: list[float]
    label: str | None
    anchor: AnchorAnswer = Field(description="the one that fits best, before the RPN moves it")
    proposal: ProposalAnswer
    detection: DetectionAnswer | None = Field(description="null where no proposal came so far")


class ExplainAnswer(Answer):
    """One explanation for each expected box, in their order."""

    iou: float
    explanations: list[ExplanationAnswer]


def explain_answer(
    seen: Seen, explanations: Sequence[Explanation], options: ExplainOptions, request_id: str, model: str
) -> dict[str, Any]:
    """The body of ``POST /explain`` but for its timings."""
    write = _Writer(seen, options)
    return head(seen, options, request_id, model) | {
        "iou": options.iou,
        "explanations": [write.explanation(explanation) for explanation in explanations],
    }


class _Writer:
    """Facts as JSON, boxes in the frame that was asked for, numbers as short as their float32 is exact."""

    def __init__(self, seen: Seen, frame: Frame) -> None:
        self.seen, self.frame = seen, frame

    def explanation(self, it: Explanation) -> dict[str, Any]:
        return {
            "stage": it.stage,
            "sentence": it.sentence,
            "box": self.box(it.box),
            "label": it.label,
            "anchor": self.anchor(it.anchor),
            "proposal": self.proposal(it.proposal),
            "detection": None if it.detection is None else self.detection(it.detection),
        }

    def anchor(self, it: AnchorFacts) -> dict[str, Any]:
        facts = self.plain(it)
        return facts | {"cell": (facts.pop("row"), facts.pop("column"))}

    def proposal(self, it: ProposalFacts) -> dict[str, Any]:
        return self.plain(it) | {"anchor": self.anchor(it.anchor), "suppressed_by": self.suppressor(it.suppressed_by)}

    def detection(self, it: DetectionFacts) -> dict[str, Any]:
        scores = np.array(it.class_scores, dtype=np.float32)
        return self.plain(it) | {"class_scores": scores, "suppressed_by": self.suppressor(it.suppressed_by)}

    def suppressor(self, it: Suppressor | None) -> dict[str, Any] | None:
        return None if it is None else self.plain(it)

    def plain(self, it: AnchorFacts | ProposalFacts | DetectionFacts | Suppressor) -> dict[str, Any]:
        """The facts by name; what is itself made of facts is written over by the caller."""
        facts = {name: np.float32(value) if isinstance(value, float) else value for name, value in vars(it).items()}
        return facts | {"box": self.box(it.box)}

    def box(self, box: Sequence[float]) -> NDArray[np.float32]:
        corners: NDArray[np.float32] = in_frame(np.array([box], dtype=np.float32), self.seen, self.frame)[0]
        return corners
