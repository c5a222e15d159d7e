"""The self-test: detect on a stored image, to find out whether the detector works.

For the bundled weights the right answer is stored (``self_test.json``, by the checkpoint's SHA-256), so that a machine
or a library that computes something else is noticed before the first request. For other weights the answer is recorded
at the start and compared after each failed batch. ``python -m service.inference.self_test WEIGHTS`` stores the answer
of a checkpoint.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from model.structures import DetectOptions, ImageArray, NotFiniteError
from service.images.decoding import decode
from service.inference.detector import DetectorLike

_FOLDER = files("service.inference")
_STORED = "self_test.json"
_MAX_STORED = 10  # detections and proposals of a reference answer, the best
_MAX_PROPOSALS = 100  # of an answer that is compared: a proposal may have another rank than in the reference


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may differ from the reference.

    iou: least IoU of a box with its reference. score: largest difference of a score or objectness. flips: most
    proposals that a neighbour may replace, where NMS decided narrowly; detections must all be there.
    """

    iou: float
    score: float
    flips: int


# Measured with the bundled weights on other machines: fp32 differs by millionths; bf16 on CPUs moves boxes to an IoU of
# 0.992 and scores by 0.01, and one box that NMS kept narrowly replaced three proposals of ten; int8 moves boxes to an
# IoU of 0.986 and scores by 0.04.
_REDUCED = Tolerance(0.90, 0.05, 5)
TOLERANCES = {"fp32": Tolerance(0.98, 0.01, 1), "tf32": _REDUCED, "bf16": _REDUCED, "fp16": _REDUCED, "int8": _REDUCED}
# A neighbour that replaces a proposal overlaps it by more than the RPN's NMS allows, 0.7, but for rounding.
NEIGHBOUR_IOU = 0.65


@dataclass(frozen=True)
class ReferenceAnswer:
    """The detector's answer for the test image. boxes, proposals: xyxy in pixels; scores, objectness: 0 to 1, falling.

    The stored JSON has these names.
    """

    class_ids: list[int]
    scores: list[float]
    boxes: list[list[float]]
    objectness: list[float]
    proposals: list[list[float]]

    def first(self, count: int) -> ReferenceAnswer:
        """Return the best ``count`` detections and proposals."""
        return ReferenceAnswer(*(values[:count] for values in vars(self).values()))


class SelfTestError(ValueError):
    """The detector's answer for the test image is not the right one."""


class SelfTest:
    """The test image, the right answer for it, and how far a working detector may be off."""

    def __init__(self, image: ImageArray, reference: ReferenceAnswer, tolerance: Tolerance) -> None:
        self.image = image
        self.reference = reference
        self.tolerance = tolerance

    @classmethod
    def prepare(cls, detector: DetectorLike) -> SelfTest:
        """Return the self-test for ``detector``, which has passed it once.

        Where no answer is stored for its weights, the detector must at least agree with itself. Raises
        ``SelfTestError``, and what the detector raises.
        """
        image, info = load_image(), detector.info
        # The stored answers are of bucket canvases; how far an image is padded changes what is near its edge.
        reference = stored_answer(info.sha256) if info.canvases else None
        if reference is None:
            reference = run_detector(detector, image).first(_MAX_STORED)
        self_test = cls(image, reference, TOLERANCES[info.precision])
        self_test.check(detector)
        return self_test

    def check(self, detector: DetectorLike) -> None:
        """Raise ``SelfTestError`` where the answer is not the right one, and what the detector raises."""
        answer, reference = run_detector(detector, self.image), self.reference
        for class_id, box, score in zip(reference.class_ids, reference.boxes, reference.scores, strict=True):
            rows = [row for row, answer_id in enumerate(answer.class_ids) if answer_id == class_id]
            boxes, scores = [answer.boxes[row] for row in rows], [answer.scores[row] for row in rows]
            self._match(box, score, boxes, scores, name=f"the object of class {class_id}")
        flips = []
        for box, score in zip(reference.proposals, reference.objectness, strict=True):
            try:
                self._match(box, score, answer.proposals, answer.objectness, name="the proposal")
            except SelfTestError as error:
                if not self._replaced_by_neighbour(box, score, answer):
                    raise
                flips.append(error)
        if len(flips) > self.tolerance.flips:
            raise flips[0]

    def _replaced_by_neighbour(self, box: list[float], score: float, answer: ReferenceAnswer) -> bool:
        """Return whether NMS would drop this proposal for one in ``answer``."""
        return any(
            objectness >= score - self.tolerance.score and _iou(np.array(box), np.array(proposal)) >= NEIGHBOUR_IOU
            for proposal, objectness in zip(answer.proposals, answer.objectness, strict=True)
        )

    def _match(
        self, box: list[float], score: float, boxes: list[list[float]], scores: list[float], *, name: str
    ) -> None:
        """Raise ``SelfTestError`` where none of ``boxes`` is ``box`` within the tolerance."""
        overlaps = [_iou(np.array(box), np.array(candidate)) for candidate in boxes]
        matches = [
            abs(score - scores[row]) <= self.tolerance.score
            for row, overlap in enumerate(overlaps)
            if overlap >= self.tolerance.iou
        ]
        if not any(matches):
            raise SelfTestError(
                f"{name} at {np.round(box, 1).tolist()} with score {score:.3f} is not found again "
                f"(best IoU {max(overlaps, default=0.0):.3f})"
            )


def load_image() -> ImageArray:
    """Return the test image, a cat: uint8 [213, 320, 3] RGB (scikit-image's `chelsea`, Stefan van der Walt, CC0)."""
    return decode(_FOLDER.joinpath("self_test.jpg").read_bytes(), max_pixels=100_000)


def run_detector(detector: DetectorLike, image: ImageArray) -> ReferenceAnswer:
    """Return the detector's answer for ``image``. Raises ``SelfTestError`` where a number is not finite."""
    limit = min(_MAX_PROPOSALS, detector.info.max_proposals)
    try:
        [detections] = detector.detect([image], [DetectOptions(proposals=limit)])
    except NotFiniteError as error:
        raise SelfTestError(str(error)) from None
    empty: NDArray[np.float32] = np.zeros((0, 4), np.float32)
    boxes, scores = detections.boxes.numpy(), detections.scores.numpy()
    proposals = empty if detections.proposals is None else detections.proposals.boxes.numpy()
    objectness = empty[:, 0] if detections.proposals is None else detections.proposals.objectness.numpy()
    if not all(np.isfinite(numbers).all() for numbers in (boxes, scores, proposals, objectness)):
        raise SelfTestError("the detector's numbers are not finite")
    class_ids = detections.class_ids.tolist()
    return ReferenceAnswer(class_ids, scores.tolist(), boxes.tolist(), objectness.tolist(), proposals.tolist())


def stored_answer(sha256: str | None) -> ReferenceAnswer | None:
    """Return the right answer of the checkpoint with that hash, or None where none is stored."""
    answers = json.loads(_FOLDER.joinpath(_STORED).read_text())
    return ReferenceAnswer(**answers[sha256]) if sha256 in answers else None


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the IoU of two boxes, xyxy."""
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = float(np.prod(np.maximum(size, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - intersection
    return intersection / union if union > 0 else 1.0


def main(weights: str) -> None:
    """Store the answer of ``weights``, in fp32 on the CPU, in the source tree's ``self_test.json``."""
    from pathlib import Path

    from model.detector import Detector

    detector = Detector.from_checkpoint(weights, device="cpu", precision="fp32")
    if detector.info.sha256 is None:
        sys.exit(f"Nothing says the SHA-256 of {weights}: give its entry in weights/manifest.toml one.")
    path = Path(__file__).with_name(_STORED)
    answers = json.loads(path.read_text()) if path.exists() else {}
    answers[detector.info.sha256] = asdict(run_detector(detector, load_image()).first(_MAX_STORED))
    path.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
