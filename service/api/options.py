"""The options beside an image, which come in the query, in the form or in the JSON: validated and merged."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.structures import Box, DetectOptions, DetectorInfo
from service.api.regions import Regions, first_outside
from service.errors import BadOption
from service.settings import Settings

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]
OptionsT = TypeVar("OptionsT", bound="BoxNotation")
ModelT = TypeVar("ModelT", bound=BaseModel)
T = TypeVar("T")
MAX_TIMEOUT_MS = 3_600_000
MAX_IMAGES = 32  # in one request
MAX_CLASSES = 1000
MAX_QUERY_NAMES = 64  # different options in a query
MAX_QUERY_VALUES = MAX_CLASSES + MAX_QUERY_NAMES
MAX_PROBLEMS = 10  # named in an error
_NAME_CHARACTERS = 60  # of a client's own words in an error
_PROBLEM_CHARACTERS = 200
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class BoxNotation(BaseModel):
    """How boxes are written. Unknown options are refused, so that a misspelt one is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    box_format: BoxFormat = Field("xyxy", description="corners; corner, width and height; or centre, width and height")
    normalized: bool = Field(False, description="boxes as fractions of the image's width and height, not pixels")


class Thresholds(BoxNotation):
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

    classes: list[int | str] | None = Field(
        None, max_length=MAX_CLASSES, fail_fast=True, description="only these: names or ids, repeatable"
    )
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
            class_ids=None if self.classes is None else tuple(sorted(set(class_ids(self.classes, info)))),
            proposals=self.proposals,
            regions=self.regions,
        )


class ProposalOptions(BoxNotation):
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


def merge_into(kind: type[OptionsT], query: BoxNotation, body: Mapping[str, Any]) -> OptionsT:
    """Return ``query`` with the body's options as a ``kind``, a class with more options. Raises ``BadOption``."""
    values = query.model_dump(exclude_unset=True) | dict(body)
    for name in ("classes", "labels"):  # one form field is one value, a repeated one is a list
        if isinstance(values.get(name), str | int):
            values[name] = [values[name]]
    return validate(kind, values)


def validate(kind: type[ModelT], values: Mapping[str, Any]) -> ModelT:
    """Return ``values`` as a ``kind``, a class of options. Raises ``BadOption``."""
    unnamed = set([name for name in values if name not in kind.model_fields][MAX_PROBLEMS:])  # the error has only ten
    try:
        return kind.model_validate({name: value for name, value in values.items() if name not in unnamed})
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise bad_options(details, more=len(unnamed)) from None


def check_query(query_string: bytes) -> None:
    """Raise ``BadOption`` for a query with so many options that reading them all would take long.

    query_string: as sent, before any of it is decoded.
    """
    values = query_string.split(b"&", MAX_QUERY_VALUES)
    if len(values) > MAX_QUERY_VALUES:
        raise option_error("query", f"there are over {MAX_QUERY_VALUES} options in it; send them in a form or JSON")
    if len(names := {value.partition(b"=")[0] for value in values}) > MAX_QUERY_NAMES:
        raise option_error("query", f"there are {len(names)} different options in it; GET /docs lists those there are")


def bad_options(details: Iterable[Any], more: int = 0) -> BadOption:
    """Return Pydantic's list of errors as one error, with ``{"name", "problem"}`` for each of the first ten.

    more: problems beside those in ``details``, which are only counted.
    """
    problems: dict[tuple[str, str], None] = {}  # a set in order
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
        problems[name, message[:1].lower() + message[1:]] = None
    fields = [
        {"name": name[:_NAME_CHARACTERS], "problem": problem[:_PROBLEM_CHARACTERS]}
        for name, problem in itertools.islice(problems, MAX_PROBLEMS)
    ]
    sentences = [f"{field['name']}: {field['problem']}" for field in fields]
    if more := more + len(problems) - len(fields):
        sentences.append(f"and {more} more")
    return BadOption("; ".join(sentences) + ".", fields=fields)


@functools.cache
def _ranges() -> dict[str, tuple[float, float]]:
    """Return the least and greatest value by option, as this module's and ``explanations.py``'s models declare them."""
    ranges: dict[str, tuple[float, float]] = {"X-Request-Timeout-Ms": (1, MAX_TIMEOUT_MS)}
    for options in _descendants(BoxNotation):
        for name, schema in options.model_json_schema()["properties"].items():
            for kind in schema.get("anyOf", [schema]):
                if "minimum" in kind and "maximum" in kind:
                    ranges[name] = kind["minimum"], kind["maximum"]
    return ranges


def _descendants(kind: type[BoxNotation]) -> Iterator[type[BoxNotation]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _descendants(subclass)


def _default(value: T | None, default: T | None) -> T | None:
    return default if value is None else value


def class_ids(names_or_ids: Iterable[int | str], info: DetectorInfo, option: str = "classes") -> list[int]:
    """Return the id of each class. Raises ``BadOption``, which names ``option``, for an unknown class."""
    ids: dict[int | str, int] = {name: number for number, name in reversed(list(enumerate(info.classes))) if number}
    return [ids.get(each) or _parse_class_id(each, len(info.classes) - 1, option) for each in names_or_ids]


def _parse_class_id(text: int | str, last: int, option: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if 1 <= number <= last:
        return number
    raise option_error(
        option,
        f"{str(text)[:_NAME_CHARACTERS]!r} is not a class of this detector; GET /model lists its names, "
        f"whose ids are 1 to {last}",
    )


def check_regions(regions: Sequence[Box], width: int, height: int) -> None:
    """Raise ``BadOption`` for a region outside the image: clipped to nothing, it would look like an empty one."""
    if (number := first_outside(regions, width, height)) is not None:
        raise option_error("regions", f"region {number} lies outside the image, which is {width} x {height} pixels")


def option_error(name: str, problem: str) -> BadOption:
    """Return the error for one option."""
    return BadOption(f"{name}: {problem}.", fields=[{"name": name, "problem": problem}])
