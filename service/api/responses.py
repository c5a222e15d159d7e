"""Detections -> the JSON of the contract, straight from the arrays.

The time that writing takes is itself part of the answer, so the timings are written last and spliced in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from torch import Tensor

from model.structures import Detections, HeatMap, Proposals, Trace
from service.api.schemas import Frame, ProposalOptions
from service.inference.decoding import Decoded

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True)
class Seen:
    """A picture and what was found in it; ``seconds`` by stage, and when its bytes were there."""

    picture: Decoded
    detections: Detections
    seconds: dict[str, float]
    began: float

    @property
    def width(self) -> int:
        """Pixels."""
        return self.picture.width

    @property
    def height(self) -> int:
        """Pixels."""
        return self.picture.height


def detect_answer(seen: Seen, frame: Frame, request_id: str, model: str) -> dict[str, Any]:
    """The body of ``POST /detect`` but for its timings."""
    found = seen.detections
    body = head(seen, frame, request_id, model) | {
        "boxes": in_frame(found.boxes.numpy(), seen, frame),
        "scores": found.scores.numpy(),
        "labels": list(found.labels),
        "class_ids": found.class_ids.numpy(),
    }
    if found.proposals is not None:
        body["proposals"] = _proposals(found.proposals, seen, frame)
        body["proposal_indices"] = found.proposal_indices.numpy()
    return body


@dataclass(frozen=True)
class Selection:
    """Some of a trace's candidates: their rows, and how many passed the filters before the limit."""

    proposals: Proposals
    rows: Tensor
    count: int


def select(trace: Trace, options: ProposalOptions) -> Selection:
    """The proposals of the stage that is asked for that pass the filters, by falling objectness, cut at the limit."""
    everything = trace.candidates
    rows = trace.final_rows if options.stage == "final" else everything.objectness.sort(descending=True, stable=True).indices
    keep = everything.objectness[rows] >= options.min_objectness
    if options.level is not None:
        keep &= everything.levels[rows] == options.level
    passed = rows[keep]
    chosen = passed[: options.limit]
    return Selection(everything[chosen], chosen, len(passed))


def proposals_answer(
    seen: Seen, trace: Trace, selection: Selection, options: ProposalOptions, request_id: str, model: str
) -> dict[str, Any]:
    """The body of ``POST /proposals`` but for its timings."""
    fates, places = trace.fates(), {row: place for place, row in enumerate(trace.final_rows.tolist())}
    rows = selection.rows.tolist()
    body = head(seen, options, request_id, model) | {
        "stage": options.stage,
        "count": selection.count,
        **_proposals(selection.proposals, seen, options),
        "proposal_indices": [places.get(row) for row in rows],
        "fates": [fates[row] for row in rows],
        "funnel": trace.funnel(),
    }
    if options.view == "objectness":
        body["maps"] = [_objectness_map(heat, seen, options) for heat in heat_maps(trace, options)]
    return body


def heat_maps(trace: Trace, options: ProposalOptions) -> list[HeatMap]:
    """The heat map of the level that is asked for, or of every level."""
    levels = range(len(trace.maps)) if options.level is None else [options.level]
    return [trace.heat_map(level) for level in levels]


def write(body: Mapping[str, Any]) -> bytes:
    """JSON without the timings; ``with_timings`` adds them."""
    return orjson.dumps(body, option=_NUMPY)


def with_timings(written: bytes, timings: Mapping[str, float]) -> bytes:
    """``written``, a JSON object that is not empty, with ``timings_ms`` as its last member."""
    return b'%b,"timings_ms":%b}' % (written[:-1], orjson.dumps(timings))


def milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage as the contract has them: milliseconds, to the microsecond."""
    return {stage: round(value * 1000, 3) for stage, value in seconds.items()}


def server_timing(timings: Mapping[str, float]) -> str:
    """The ``Server-Timing`` header for ``timings`` in milliseconds; browsers show it."""
    return ", ".join(f"{stage};dur={value}" for stage, value in timings.items())


def head(seen: Seen, frame: Frame, request_id: str, model: str) -> dict[str, Any]:
    """What every answer about a picture begins with."""
    return {
        "request_id": request_id,
        "model": model,
        "image": {"width": seen.width, "height": seen.height},
        "box_format": frame.box_format,
        "normalized": frame.normalized,
        "batch_size": seen.detections.batch_size,
    }


def _proposals(proposals: Proposals, seen: Seen, frame: Frame) -> dict[str, Any]:
    locations = proposals.locations
    assert locations is not None
    return {
        "boxes": in_frame(proposals.boxes.numpy(), seen, frame),
        "objectness": proposals.objectness.numpy(),
        "levels": proposals.levels.numpy(),
        "ranks": proposals.ranks.numpy(),
        "anchors": in_frame(proposals.anchors.numpy(), seen, frame),
        "deltas": np.ascontiguousarray(proposals.deltas.numpy()),
        "cells": np.stack([locations.rows.numpy(), locations.columns.numpy()], axis=1),
        "sizes": locations.sizes.numpy(),
        "ratios": locations.ratios.numpy(),
    }


def _objectness_map(heat: HeatMap, seen: Seen, frame: Frame) -> dict[str, Any]:
    width, height = (seen.width, seen.height) if frame.normalized else (1, 1)
    return {
        "level": heat.level,
        "values": np.ascontiguousarray(heat.values.numpy()),
        "origin": (heat.origin[0] / width, heat.origin[1] / height),
        "step": (heat.step[0] / width, heat.step[1] / height),
    }


def in_frame(boxes: NDArray[np.float32], seen: Seen, frame: Frame) -> NDArray[np.float32]:
    """[N, 4] xyxy in pixels -> as ``frame`` asks."""
    if frame.normalized:
        boxes = np.divide(boxes, np.array([seen.width, seen.height] * 2, dtype=np.float32), dtype=np.float32)
    if frame.box_format != "xyxy":
        corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        first = corner if frame.box_format == "xywh" else corner + extent / 2
        boxes = np.concatenate([first, extent], axis=1)
    return np.ascontiguousarray(boxes)
