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

from model.structures import Detections, Proposals
from service.imaging import Picture
from service.schemas import Frame, ProposalOptions

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True)
class Seen:
    """A picture (uint8 [H, W, 3] RGB) and what was found in it; ``seconds`` by stage, and when its bytes were there."""

    picture: Picture
    detections: Detections
    seconds: dict[str, float]
    began: float

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.picture.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.picture.shape[0])


def detect_answer(seen: Seen, frame: Frame, request_id: str, model: str) -> dict[str, Any]:
    """The body of ``POST /detect`` but for its timings."""
    found = seen.detections
    body = _head(seen, frame, request_id, model) | {
        "boxes": _boxes(found.boxes.numpy(), seen, frame),
        "scores": found.scores.numpy(),
        "labels": list(found.labels),
        "class_ids": found.class_ids.numpy(),
    }
    if found.proposals is not None:
        body["proposals"] = _proposals(found.proposals, seen, frame)
    return body


def select(proposals: Proposals, options: ProposalOptions) -> tuple[Proposals, int]:
    """The proposals that pass the filters, cut at the limit, and how many passed before the cut."""
    keep = proposals.objectness >= options.min_objectness
    if options.level is not None:
        keep &= proposals.levels == options.level
    chosen = proposals[keep]
    return chosen[: options.limit], len(chosen)


def proposals_answer(
    seen: Seen, chosen: Proposals, count: int, frame: Frame, request_id: str, model: str
) -> dict[str, Any]:
    """The body of ``POST /proposals`` but for its timings."""
    return _head(seen, frame, request_id, model) | {"count": count} | _proposals(chosen, seen, frame)


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
    return ", ".join(f"{stage};dur={value:g}" for stage, value in timings.items())


def _head(seen: Seen, frame: Frame, request_id: str, model: str) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "model": model,
        "image": {"width": seen.width, "height": seen.height},
        "box_format": frame.box_format,
        "normalized": frame.normalized,
        "batch_size": seen.detections.batch_size,
    }


def _proposals(proposals: Proposals, seen: Seen, frame: Frame) -> dict[str, Any]:
    return {
        "boxes": _boxes(proposals.boxes.numpy(), seen, frame),
        "objectness": proposals.objectness.numpy(),
        "levels": proposals.levels.numpy(),
        "ranks": proposals.ranks.numpy(),
        "anchors": _boxes(proposals.anchors.numpy(), seen, frame),
        "deltas": np.ascontiguousarray(proposals.deltas.numpy()),
    }


def _boxes(boxes: NDArray[np.float32], seen: Seen, frame: Frame) -> NDArray[np.float32]:
    """[N, 4] xyxy in pixels -> as ``frame`` asks."""
    if frame.normalized:
        boxes = np.divide(boxes, np.array([seen.width, seen.height] * 2, dtype=np.float32), dtype=np.float32)
    if frame.box_format != "xyxy":
        corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        first = corner if frame.box_format == "xywh" else corner + extent / 2
        boxes = np.concatenate([first, extent], axis=1)
    return np.ascontiguousarray(boxes)
