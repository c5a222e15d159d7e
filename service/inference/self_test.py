"""The canary: a picture of our own, whose answer tells whether the detector is sound.

For the bundled weights the right answer is stored (``self_test.json``, by the checkpoint's SHA-256), so that a machine
or a library that computes something else is found out before it answers anybody. Other weights record theirs at the start,
and are held to it after each incident. ``python -m service.inference.self_test WEIGHTS`` stores the answer of a
checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.structures import Detections, DetectOptions, DetectorInfo, NotFiniteError
from service.inference.decoding import Picture, decode

_FOLDER = files("service.inference")
_STORED = "self_test.json"


class Looks(Protocol):
    """What the canary needs of a detector."""

    @property
    def info(self) -> DetectorInfo: ...
    def detect(self, images: Sequence[Picture], options: Sequence[DetectOptions]) -> list[Detections]: ...


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may be off: IoU of a box with its stored one at least, score and objectness at most.

    flips: proposals that may have given way to a neighbour, which NMS kept by a hair; objects may not.
    """

    iou: float
    score: float
    flips: int


# Same weights, another machine: fp32 moves by millionths. bf16, on CPUs with the bundled weights, was seen to move
# boxes to an IoU of 0.992 and scores by 0.01; and one box that NMS kept by a hair took the place of three proposals of
# ten. int8 moved boxes to 0.986 and scores by 0.04.
_SHORT = Tolerance(0.90, 0.05, 5)
TOLERANCES = {"fp32": Tolerance(0.98, 0.01, 1), "tf32": _SHORT, "bf16": _SHORT, "fp16": _SHORT, "int8": _SHORT}
# A neighbour that took a proposal's place overlaps it by more than the RPN's NMS allows, 0.7, but for the rounding.
NEIGHBOUR = 0.65


@dataclass(frozen=True)
class Sight:
    """What a detector saw in the canary. boxes, proposals: xyxy in pixels; scores, objectness: 0 to 1, falling."""

    class_ids: list[int]
    scores: list[float]
    boxes: list[list[float]]
    objectness: list[float]
    proposals: list[list[float]]


class CanaryError(ValueError):
    """The detector's answer to the canary is not the right one."""


class Canary:
    """The picture, the right answer to it, and how near to it a sound detector comes."""

    KEEP = 10  # detections and proposals of an answer, the best
    LOOK_AMONG = 100  # a proposal may have changed places with its neighbours

    def __init__(self, image: Picture, right: Sight, tolerance: Tolerance) -> None:
        self.image = image
        self.right = right
        self.tolerance = tolerance

    @classmethod
    def prepare(cls, detector: Looks) -> Canary:
        """The canary for ``detector``, which has passed it once. Raises ``CanaryError``, and what the detector raises.

        Where no answer is stored for its weights, the detector must at least agree with itself.
        """
        image, info = picture(), detector.info
        # The stored answers are of bucket canvases; how far a picture is padded changes what is near its edge.
        right = stored_sight(info.sha256) if info.canvases else None
        if right is None:
            right = _best(look(detector, image), cls.KEEP)
        canary = cls(image, right, TOLERANCES[info.precision])
        canary.check(detector)
        return canary

    def check(self, detector: Looks) -> None:
        """Raises ``CanaryError`` where the answer is not the right one, or whatever the detector raises."""
        seen = look(detector, self.image)
        for i, (box, score) in enumerate(zip(self.right.boxes, self.right.scores, strict=True)):
            class_id = self.right.class_ids[i]
            same = [j for j, other in enumerate(seen.class_ids) if other == class_id]
            rivals = [seen.boxes[j] for j in same], [seen.scores[j] for j in same]
            self._find(box, score, *rivals, what=f"the object of class {class_id}")
        flips = []
        for box, score in zip(self.right.proposals, self.right.objectness, strict=True):
            try:
                self._find(box, score, seen.proposals, seen.objectness, what="the proposal")
            except CanaryError as error:
                if not self._gave_way(box, score, seen):
                    raise
                flips.append(error)
        if len(flips) > self.tolerance.flips:
            raise flips[0]

    def _gave_way(self, box: list[float], score: float, seen: Sight) -> bool:
        """Whether NMS would drop this proposal for one that was seen."""
        return any(
            objectness >= score - self.tolerance.score and _iou(np.array(box), np.array(other)) >= NEIGHBOUR
            for other, objectness in zip(seen.proposals, seen.objectness, strict=True)
        )

    def _find(
        self, box: list[float], score: float, boxes: list[list[float]], scores: list[float], *, what: str
    ) -> None:
        overlaps = [_iou(np.array(box), np.array(other)) for other in boxes]
        near = [
            abs(score - scores[j]) <= self.tolerance.score
            for j, overlap in enumerate(overlaps)
            if overlap >= self.tolerance.iou
        ]
        if not any(near):
            raise CanaryError(
                f"{what} at {np.round(box, 1).tolist()} with score {score:.3f} is not found again "
                f"(best IoU {max(overlaps, default=0.0):.3f})"
            )


def picture() -> Picture:
    """The canary: a cat, uint8 [213, 320, 3] RGB (scikit-image's `chelsea`, Stefan van der Walt, CC0; made smaller)."""
    return decode(_FOLDER.joinpath("self_test.jpg").read_bytes(), max_pixels=100_000)


def look(detector: Looks, image: Picture) -> Sight:
    """What ``detector`` sees in ``image``. Raises ``CanaryError`` where a number is not finite."""
    limit = min(Canary.LOOK_AMONG, detector.info.max_proposals)
    try:
        [found] = detector.detect([image], [DetectOptions(proposals=limit)])
    except NotFiniteError as error:
        raise CanaryError(str(error)) from None
    proposed = found.proposals
    empty: NDArray[np.float32] = np.zeros((0, 4), np.float32)
    boxes, scores = found.boxes.numpy(), found.scores.numpy()
    proposals = empty if proposed is None else proposed.boxes.numpy()
    objectness = empty[:, 0] if proposed is None else proposed.objectness.numpy()
    if not all(np.isfinite(numbers).all() for numbers in (boxes, scores, proposals, objectness)):
        raise CanaryError("the detector's numbers are not finite")
    return Sight(found.class_ids.tolist(), scores.tolist(), boxes.tolist(), objectness.tolist(), proposals.tolist())


def stored_sight(sha256: str | None) -> Sight | None:
    """The right answer of the checkpoint with that hash, or None."""
    answers = json.loads(_FOLDER.joinpath(_STORED).read_text())
    return Sight(**answers[sha256]) if sha256 in answers else None


def _best(sight: Sight, count: int) -> Sight:
    return Sight(
        sight.class_ids[:count],
        sight.scores[:count],
        sight.boxes[:count],
        sight.objectness[:count],
        sight.proposals[:count],
    )


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of two boxes, xyxy."""
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(size, 0)))
    both = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / both if both > 0 else 1.0


def main(weights: str) -> None:
    """Store the answer of ``weights``, in fp32 on the CPU, in the source tree's ``self_test.json``."""
    from pathlib import Path

    from model.detector import Detector

    detector = Detector.from_checkpoint(weights, device="cpu", precision="fp32")
    if detector.info.sha256 is None:
        sys.exit(f"Nothing says the SHA-256 of {weights}: give its entry in weights/manifest.toml one.")
    path = Path(__file__).with_name(_STORED)
    answers = json.loads(path.read_text()) if path.exists() else {}
    answers[detector.info.sha256] = asdict(_best(look(detector, picture()), Canary.KEEP))
    path.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
