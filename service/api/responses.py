"""Write detections and proposals as JSON, straight from the arrays.

The time that writing takes is itself part of the response, so the timings are added to the written bytes at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from model.structures import HeatMap, Proposals, Trace
from service.api.options import BoxNotation, ProposalOptions
from service.inference.pipeline import ImageResult


def detect_response(result: ImageResult, notation: BoxNotation, request_id: str, model: str) -> bytes:
    """Write the JSON body of ``POST /detect`` but for its timings."""
    detections = result.detections
    body = response_head(result, notation, request_id, model) | {
        "boxes": convert_boxes(detections.boxes.numpy(), result, notation),
        "scores": detections.scores.numpy(),
        "labels": list(detections.labels),
        "class_ids": detections.class_ids.numpy(),
    }
    if detections.proposals is not None:
        body["proposals"] = _proposals(detections.proposals, result, notation)
        body["proposal_indices"] = detections.proposal_indices.numpy()
    return to_json(body)


@dataclass(frozen=True)
class ProposalSelection:
    """Some of a trace's candidates: their rows in it, and how many passed the filters before the limit."""

    proposals: Proposals
    rows: list[int]
    count: int


def select_proposals(trace: Trace, options: ProposalOptions) -> ProposalSelection:
    """Return the proposals of the requested stage that pass the filters, by falling objectness, up to the limit."""
    candidates = trace.candidates
    if options.stage == "final":
        rows = trace.final_rows
    else:
        rows = candidates.objectness.sort(descending=True, stable=True).indices
    keep = candidates.objectness[rows] >= options.min_objectness
    if options.level is not None:
        keep &= candidates.levels[rows] == options.level
    passed = rows[keep]
    selected = passed[: options.limit]
    return ProposalSelection(candidates[selected], selected.tolist(), len(passed))


def proposals_response(
    result: ImageResult, trace: Trace, options: ProposalOptions, request_id: str, model: str
) -> bytes:
    """Write the JSON body of ``POST /proposals`` but for its timings."""
    selection, outcomes = select_proposals(trace, options), trace.outcomes()
    final_indices = {row: index for index, row in enumerate(trace.final_rows.tolist())}
    body = response_head(result, options, request_id, model) | {
        "stage": options.stage,
        "count": selection.count,
        **_proposals(selection.proposals, result, options),
        "proposal_indices": [final_indices.get(row) for row in selection.rows],
        "outcomes": [outcomes[row] for row in selection.rows],
        "stage_counts": trace.stage_counts(),
    }
    if options.view == "objectness":
        body["maps"] = [_objectness_map(heat_map, result, options) for heat_map in heat_maps(trace, options)]
    return to_json(body)


def heat_maps(trace: Trace, options: ProposalOptions) -> list[HeatMap]:
    """Return the heat map of the requested level, or of every level."""
    levels = range(len(trace.maps)) if options.level is None else [options.level]
    return [trace.heat_map(level) for level in levels]


def to_json(body: Mapping[str, Any]) -> bytes:
    """Return ``body``, which may hold NumPy arrays, as JSON."""
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def add_timings(json_object: bytes, timings: Mapping[str, float]) -> bytes:
    """Return ``json_object``, which is not empty, with ``timings_ms`` as its last member."""
    return b'%b,"timings_ms":%b}' % (json_object[:-1], orjson.dumps(timings))


def milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return seconds by stage as milliseconds, rounded to the microsecond."""
    return {stage: round(value * 1000, 3) for stage, value in seconds.items()}


def server_timing(timings: Mapping[str, float]) -> str:
    """Return the ``Server-Timing`` header, which browsers show, for ``timings`` in milliseconds."""
    return ", ".join(f"{stage};dur={value}" for stage, value in timings.items())


def response_head(result: ImageResult, notation: BoxNotation, request_id: str, model: str) -> dict[str, Any]:
    """Return the members that every response about an image begins with."""
    return {
        "request_id": request_id,
        "model": model,
        "image": {"width": result.width, "height": result.height},
        "box_format": notation.box_format,
        "normalized": notation.normalized,
        "batch_size": result.detections.batch_size,
    }


def convert_boxes(boxes: NDArray[np.float32], result: ImageResult, notation: BoxNotation) -> NDArray[np.float32]:
    """Convert boxes [N, 4], xyxy in pixels, to the format and units of ``notation``."""
    if notation.normalized:
        boxes = np.divide(boxes, np.array([result.width, result.height] * 2, dtype=np.float32), dtype=np.float32)
    if notation.box_format != "xyxy":
        corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        first = corner if notation.box_format == "xywh" else corner + extent / 2
        boxes = np.concatenate([first, extent], axis=1)
    return np.ascontiguousarray(boxes)


def _proposals(proposals: Proposals, result: ImageResult, notation: BoxNotation) -> dict[str, Any]:
    locations = proposals.locations
    assert locations is not None
    return {
        "boxes": convert_boxes(proposals.boxes.numpy(), result, notation),
        "objectness": proposals.objectness.numpy(),
        "levels": proposals.levels.numpy(),
        "ranks": proposals.ranks.numpy(),
        "anchors": convert_boxes(proposals.anchors.numpy(), result, notation),
        "deltas": np.ascontiguousarray(proposals.deltas.numpy()),
        "cells": np.stack([locations.rows.numpy(), locations.columns.numpy()], axis=1),
        "sizes": locations.sizes.numpy(),
        "ratios": locations.ratios.numpy(),
    }


def _objectness_map(heat_map: HeatMap, result: ImageResult, notation: BoxNotation) -> dict[str, Any]:
    width, height = (result.width, result.height) if notation.normalized else (1, 1)
    return {
        "level": heat_map.level,
        "values": np.ascontiguousarray(heat_map.values.numpy()),
        "origin": (heat_map.origin[0] / width, heat_map.origin[1] / height),
        "step": (heat_map.step[0] / width, heat_map.step[1] / height),
    }
