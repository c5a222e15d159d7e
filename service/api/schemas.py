"""What goes in beside a picture, and what comes out: the types of the contract.

Answers are built by ``answers.py`` straight from arrays; the response models here are what OpenAPI says of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.structures import DetectOptions, DetectorInfo
from service.api.regions import Box, Regions, outside
from service.errors import BadOption
from service.settings import Settings

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
F = TypeVar("F", bound="Frame")
V = TypeVar("V")
MAX_TIMEOUT_MS = 3_600_000
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# Lists, not tuples: JSON Schema's tuples are younger than many of the tools that read OpenAPI documents.
Cell = Annotated[list[int], Field(min_length=2, max_length=2)]
Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class Frame(BaseModel):
    """How boxes are written. ``extra`` options are refused, so that a misspelt one is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    box_format: BoxFormat = Field("xyxy", description="corners; corner, width and height; or centre, width and height")
    normalized: bool = Field(False, description="boxes as fractions of the picture's width and height, not pixels")


class Thresholds(Frame):
    """What decides which detections are returned. What is not given is the server's default, or the checkpoint's."""

    score_threshold: Fraction | None = Field(None, description="detections score above this")
    max_detections: int | None = Field(None, ge=1, le=1000, description="at most so many, the best first")
    nms_threshold: Fraction | None = Field(None, description="of two boxes of a class that overlap more, one goes")

    def thresholds(self, settings: Settings) -> DetectOptions:
        """These options with the server's defaults for what they leave open."""
        return DetectOptions(
            score_threshold=_first(self.score_threshold, settings.score_threshold),
            nms_threshold=self.nms_threshold,
            max_detections=_first(self.max_detections, settings.max_detections),
        )


class Options(Thresholds):
    """The options of ``POST /detect``."""

    classes: list[int | str] | None = Field(None, max_length=1000, description="only these: names or ids, repeatable")
    proposals: int = Field(0, ge=0, le=10_000, description="how many of the RPN's proposals to return too")
    regions: Regions = Field(
        None,
        description="look at these boxes and run no RPN (Fast R-CNN alone): JSON, corners in pixels of the picture "
        "whatever `box_format` and `normalized` say of the answer",
    )

    def resolve(self, info: DetectorInfo, settings: Settings) -> DetectOptions:
        """These options for the detector that ``info`` describes. Raises ``BadOption`` for a class it does not know."""
        if self.proposals > info.max_proposals:
            raise bad("proposals", f"input should be from 0 to {info.max_proposals}, all that this detector proposes")
        if self.regions is not None and self.proposals:
            raise bad("proposals", "with `regions` the RPN does not run, so there are none; leave one of the two out")
        return replace(
            self.thresholds(settings),
            class_ids=None if self.classes is None else tuple(sorted({class_id(c, info) for c in self.classes})),
            proposals=self.proposals,
            regions=self.regions,
        )


class ProposalOptions(Frame):
    """The options of ``POST /proposals``."""

    limit: int = Field(100, ge=1, le=10_000, description="at most so many, by falling objectness")
    level: int | None = Field(None, ge=0, le=16, description="only this pyramid level; 0 is the finest")
    min_objectness: Fraction = Field(0.0, description="only proposals with at least this objectness")
    stage: Literal["final", "pre_nms"] = Field(
        "final",
        description="final: what the RPN hands to the detector; pre_nms: the best anchors of each level, decoded",
    )
    view: Literal["boxes", "objectness"] = Field(
        "boxes", description="objectness: the heat map of every level; in JSON beside the boxes, as a picture instead"
    )

    def check_level(self, info: DetectorInfo) -> None:
        """Raises ``BadOption`` for a level that the detector does not have."""
        if self.level is not None and self.level >= len(info.anchors):
            raise bad("level", f"input should be from 0 to {len(info.anchors) - 1}, the levels of this detector")


def merge(query: F, body: Mapping[str, Any]) -> F:
    """``query`` with the options of the body over it. Raises ``BadOption``."""
    return merge_into(type(query), query, body) if body else query


def merge_into(kind: type[F], query: Frame, body: Mapping[str, Any]) -> F:
    """``query`` with the options of the body over it, as a ``kind`` that has more of them. Raises ``BadOption``."""
    given = query.model_dump(exclude_unset=True) | dict(body)
    for name in ("classes", "labels"):  # one form field is one value, a repeated one is a list
        if isinstance(given.get(name), str | int):
            given[name] = [given[name]]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise bad_options(error.errors()) from None


def bad_options(details: Sequence[Any]) -> BadOption:
    """Pydantic's list of errors as one sentence, and each as ``{"name", "problem"}``."""
    fields: list[dict[str, str]] = []
    for detail in details:
        # The place is ("query", "name"), ("header", "X-Name") or ("name", 0): the first word may be the source.
        place = [str(part) for part in detail["loc"] if part not in ("query", "header", "body")]
        name = place[0] if place else "body"
        message = str(detail["msg"]).removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "there is no such option; GET /docs lists them"
        elif name in (ranges := _ranges()):
            low, high = ranges[name]
            message = f"{message} (the range is {low} to {high})"
        field = {"name": name, "problem": message[:1].lower() + message[1:]}
        if field not in fields:
            fields.append(field)
    return BadOption("; ".join(f"{field['name']}: {field['problem']}" for field in fields) + ".", fields=fields)


def _ranges() -> dict[str, tuple[float, float]]:
    """Least and greatest value by option, as the models above declare them."""
    found: dict[str, tuple[float, float]] = {"X-Request-Timeout-Ms": (1, MAX_TIMEOUT_MS)}
    for options in _descendants(Frame):
        for name, schema in options.model_json_schema()["properties"].items():
            for kind in schema.get("anyOf", [schema]):
                if "minimum" in kind and "maximum" in kind:
                    found[name] = kind["minimum"], kind["maximum"]
    return found


def _descendants(kind: type[Frame]) -> Iterator[type[Frame]]:
    for heir in kind.__subclasses__():
        yield heir
        yield from _descendants(heir)


def _first(given: V | None, default: V | None) -> V | None:
    return default if given is None else given


def class_id(wanted: int | str, info: DetectorInfo, option: str = "classes") -> int:
    """The id of a class given by name or id, as text or number. Raises ``BadOption`` for one that there is not."""
    if isinstance(wanted, str) and wanted in info.classes[1:]:
        return info.classes.index(wanted)
    try:
        number = int(wanted)
    except ValueError:
        number = 0
    if 1 <= number < len(info.classes):
        return number
    raise bad(
        option,
        f"{str(wanted)[:60]!r} is not a class of this detector; GET /model lists its names, "
        f"whose ids are 1 to {len(info.classes) - 1}",
    )


def check_inside(regions: Sequence[Box], width: int, height: int) -> None:
    """Raises ``BadOption`` for a region outside the picture: cut off altogether, it would look like "nothing there"."""
    if (number := outside(regions, width, height)) is not None:
        raise bad("regions", f"region {number} lies outside the picture, which is {width} x {height} pixels")


def bad(name: str, problem: str) -> BadOption:
    """The error for one option."""
    return BadOption(f"{name}: {problem}.", fields=[{"name": name, "problem": problem}])


class ImageSize(BaseModel):
    """The picture as shown, in pixels: the frame of all boxes."""

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


class Answer(BaseModel):
    """What every answer about a picture says."""

    request_id: str
    model: str
    image: ImageSize
    box_format: BoxFormat
    normalized: bool
    batch_size: int = Field(description="pictures in the batch that this one was part of")
    timings_ms: dict[str, float] = Field(
        description="decode, queue, transform, backbone, rpn, roi_head, postprocess, serialize, total"
    )


class DetectAnswer(Answer):
    """What was found, by falling score: entry i of each list is detection i."""

    boxes: list[list[float]]
    scores: list[float]
    labels: list[str]
    class_ids: list[int]
    proposals: ProposalList | None = None
    proposal_indices: list[int] | None = Field(
        None,
        description="with `proposals`: which one each detection was refined from; it may be beyond those asked for",
    )


class Funnel(BaseModel):
    """How many anchors of a level are left after each cut of the RPN."""

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


class ProposalsAnswer(Answer, ProposalList):
    """What the RPN proposed."""

    stage: Literal["final", "pre_nms"]
    count: int = Field(description="proposals that passed the filters, before the limit")
    proposal_indices: list[int | None] = Field(
        description="place in the list that the detector gets, before any filter; null for what was cut"
    )
    fates: list[Literal["low_objectness", "too_small", "rpn_nms", "proposal_limit", "kept"]] = Field(
        description="which cut of the RPN took it, or kept"
    )
    funnel: list[Funnel] = Field(description="one entry a level; no filter applies to it")
    maps: list[ObjectnessMap] | None = Field(None, description="with `view=objectness`: one entry a level")


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what went wrong and what to do, for a person")
    code: str = Field(description="the same, as a word for machines")
    request_id: str
    errors: list[dict[str, str]] | None = Field(None, description="for 422: each option and what is wrong with it")


class BatchAnswer(BaseModel):
    """One entry a picture, in the order they were sent."""

    request_id: str
    results: list[DetectAnswer | Problem]


class Ready(BaseModel):
    """The state of the service."""

    status: str


class ModelAnswer(BaseModel):
    """What is being served, and within which limits."""

    name: str
    preset: str
    classes: list[str] = Field(description="names by class id; 0 is background")
    precision: str
    device: str
    canvases: list[Cell] = Field(description="height and width that pictures are padded to; empty: any")
    anchors: list[dict[str, Any]]
    parameters: int
    sha256: str | None
    metrics: dict[str, float]
    defaults: dict[str, int | float]
    limits: dict[str, int]
    optimizations: list[str] = Field(description="what was done to the network for speed, a sentence each")
