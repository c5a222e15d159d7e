"""The options beside an image, which come in the query, in the form or in the JSON: validated and merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.structures import Box, DetectOptions, DetectorInfo
from service.api.regions import Regions, first_outside
from service.errors import BadOption
from service.settings import Settings

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
OptionsT = TypeVar("OptionsT", bound="BoxFrame")
T = TypeVar("T")
MAX_TIMEOUT_MS = 3_600_000
MAX_IMAGES = 32  # in one request
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class BoxFrame(BaseModel):
    """How boxes are written. Unknown options are refused, so that a misspelt one is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    box_format: BoxFormat = Field("xyxy", description="corners; corner, width and height; or centre, width and height")
    normalized: bool = Field(False, description="boxes as fractions of the image's width and height, not pixels")


class Thresholds(BoxFrame):
    """Which detections are returned. What is None is the server's default, or the checkpoint's."""

    score_threshold: Fraction | None = Field(None, description="detections score above this")
    max_detections: int | None = Field(None, ge=1, le=1000, description="at most so many, the best first")
    nms_threshold: Fraction | None = Field(None, description="largest IoU of two detections of a class")

    def thresholds(self, settings: Settings) -> DetectOptions:
        """Return these options, with the server's defaults for what is None."""
        return DetectOptions(
            score_threshold=_default(self.score_threshold, settings.score_threshold),
            nms_threshold=self.nms_threshold,
            max_detections=_default(self.max_detections, settings.max_detections),
        )


class DetectionOptions(Thresholds):
    """The options of ``POST /detect``."""

    classes: list[int | str] | None = Field(None, max_length=1000, description="only these: names or ids, repeatable")
    proposals: int = Field(0, ge=0, le=10_000, description="how many of the RPN's proposals to return too")
    regions: Regions = Field(
        None,
        description="classify these boxes and run no RPN (Fast R-CNN alone): JSON, corners in pixels of the image "
        "whatever `box_format` and `normalized` say of the response",
    )

    def resolve(self, info: DetectorInfo, settings: Settings) -> DetectOptions:
        """Return these options for the detector that ``info`` describes. Raises ``BadOption``."""
        if self.proposals > info.max_proposals:
            raise option_error(
                "proposals", f"input should be from 0 to {info.max_proposals}, all that this detector proposes"
            )
        if self.regions is not None and self.proposals:
            raise option_error(
                "proposals", "with `regions` the RPN does not run, so there are none; leave one of the two out"
            )
        return replace(
            self.thresholds(settings),
            class_ids=None if self.classes is None else tuple(sorted({class_id(c, info) for c in self.classes})),
            proposals=self.proposals,
            regions=self.regions,
        )


class ProposalOptions(BoxFrame):
    """The options of ``POST /proposals``."""

    limit: int = Field(100, ge=1, le=10_000, description="at most so many, by falling objectness")
    level: int | None = Field(None, ge=0, le=16, description="only this pyramid level; 0 is the finest")
    min_objectness: Fraction = Field(0.0, description="only proposals with at least this objectness")
    stage: Literal["final", "pre_nms"] = Field(
        "final",
        description="final: the proposals that the RoI head gets; pre_nms: the best anchors of each level, decoded",
    )
    view: Literal["boxes", "objectness"] = Field(
        "boxes", description="objectness: the heat map of every level; in JSON beside the boxes, as an image instead"
    )

    def check_level(self, info: DetectorInfo) -> None:
        """Raise ``BadOption`` for a level that the detector does not have."""
        if self.level is not None and self.level >= len(info.anchors):
            raise option_error(
                "level", f"input should be from 0 to {len(info.anchors) - 1}, the levels of this detector"
            )


def merge(query: OptionsT, body: Mapping[str, Any]) -> OptionsT:
    """Return ``query`` with the body's options, which win. Raises ``BadOption``."""
    return merge_into(type(query), query, body) if body else query


def merge_into(kind: type[OptionsT], query: BoxFrame, body: Mapping[str, Any]) -> OptionsT:
    """Return ``query`` with the body's options as a ``kind``, a class with more options. Raises ``BadOption``."""
    values = query.model_dump(exclude_unset=True) | dict(body)
    for name in ("classes", "labels"):  # one form field is one value, a repeated one is a list
        if isinstance(values.get(name), str | int):
            values[name] = [values[name]]
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise bad_options(error.errors()) from None


def bad_options(details: Sequence[Any]) -> BadOption:
    """Return Pydantic's list of errors as one error, with ``{"name", "problem"}`` for each option."""
    fields: list[dict[str, str]] = []
    for detail in details:
        # The location is ("query", "name"), ("header", "X-Name") or ("name", 0): the first part may be the source.
        location = [str(part) for part in detail["loc"] if part not in ("query", "header", "body")]
        name = location[0] if location else "body"
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
    """Return the least and greatest value by option, as the models above declare them."""
    ranges: dict[str, tuple[float, float]] = {"X-Request-Timeout-Ms": (1, MAX_TIMEOUT_MS)}
    for options in _descendants(BoxFrame):
        for name, schema in options.model_json_schema()["properties"].items():
            for kind in schema.get("anyOf", [schema]):
                if "minimum" in kind and "maximum" in kind:
                    ranges[name] = kind["minimum"], kind["maximum"]
    return ranges


def _descendants(kind: type[BoxFrame]) -> Iterator[type[BoxFrame]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _descendants(subclass)


def _default(value: T | None, default: T | None) -> T | None:
    return default if value is None else value


def class_id(name_or_id: int | str, info: DetectorInfo, option: str = "classes") -> int:
    """Return the id of a class. Raises ``BadOption``, which names ``option``, for an unknown class."""
    if isinstance(name_or_id, str) and name_or_id in info.classes[1:]:
        return info.classes.index(name_or_id)
    try:
        number = int(name_or_id)
    except ValueError:
        number = 0
    if 1 <= number < len(info.classes):
        return number
    raise option_error(
        option,
        f"{str(name_or_id)[:60]!r} is not a class of this detector; GET /model lists its names, "
        f"whose ids are 1 to {len(info.classes) - 1}",
    )


def check_regions(regions: Sequence[Box], width: int, height: int) -> None:
    """Raise ``BadOption`` for a region outside the image: clipped to nothing, it would look like an empty one."""
    if (number := first_outside(regions, width, height)) is not None:
        raise option_error("regions", f"region {number} lies outside the image, which is {width} x {height} pixels")


def option_error(name: str, problem: str) -> BadOption:
    """Return the error for one option."""
    return BadOption(f"{name}: {problem}.", fields=[{"name": name, "problem": problem}])
