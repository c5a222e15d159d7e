"""Precision and recall by score threshold, and the calibration of scores.

D  detections of an image      K  detections that are judged, of all images
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model import boxes as box_ops
from model.data import Dataset, Sample
from model.evaluation.predictions import Prediction

WRONG, IGNORED = -1, -2

_MIN_IOU = 0.5  # of a detection that is right, as VOC has it
# Detections at or below this are not judged: there are very many, and they would dominate every mean.
MIN_SCORE = 0.01
_BINS = 10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OperatingPoint:
    """Quality of the detections that score above a threshold, from 0 to 1; ``false_per_image`` counts wrong ones."""

    threshold: float
    precision: float
    recall: float
    f1: float
    false_per_image: float


@dataclass(frozen=True)
class PrecisionRecallCurve:
    """Precision, recall and F1, float64 [P] each, of all detections that score ``lowest`` or more; ``lowest`` falls."""

    lowest: Floats
    precision: Floats
    recall: Floats
    f1: Floats


@dataclass(frozen=True)
class ReliabilityBin:
    """Detections whose score lies in [low, high). mean_score, precision: None where there are none."""

    low: float
    high: float
    detections: int
    mean_score: float | None
    precision: float | None


@dataclass(frozen=True)
class ScoreReport:
    """Quality by score, over all classes together; values from 0 to 1.

    best: at the threshold of the best F1 on these images. served: at the detector's own default threshold, which was
        chosen on other images; None where no threshold was passed.
    calibration_error: expected calibration error, the mean gap between score and precision over the bins, weighted by
        detections. detections: how many were judged, without ignored ones.
    """

    best: OperatingPoint
    served: OperatingPoint | None
    calibration_error: float
    detections: int
    bins: tuple[ReliabilityBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def match_detections(boxes: Any, scores: Any, class_ids: Any, sample: Sample) -> npt.NDArray[np.int64]:
    """Match each detection of one image to a box of the sample: int64 [D], the box's row, or ``WRONG``, or ``IGNORED``.

    boxes [D, 4] in the image's pixels, scores [D] and class_ids [D], tensors or arrays. Within a class the highest
    scores are matched first, and a box is matched once. ``IGNORED``: it matches no box, but overlaps an ignored one.
    """
    boxes, scores, class_ids = np.asarray(boxes), np.asarray(scores), np.asarray(class_ids)
    matches = np.full(len(scores), WRONG, np.int64)
    for class_id in np.unique(class_ids):
        rows = np.flatnonzero(class_ids == class_id)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        targets = np.flatnonzero(sample.class_ids == class_id)
        ignored = sample.ignore[targets]
        target_boxes = torch.from_numpy(sample.boxes[targets])
        overlaps = box_ops.iou(torch.as_tensor(boxes[rows]).float(), target_boxes).numpy()
        free = ~ignored
        for row, overlap in zip(rows, overlaps, strict=True):
            candidates = np.where(free, overlap, -1.0)
            if candidates.size and candidates.max() >= _MIN_IOU:
                free[candidates.argmax()] = False
                matches[row] = targets[candidates.argmax()]
            elif (overlap[ignored] >= _MIN_IOU).any():
                matches[row] = IGNORED
    return matches


def judge_detections(predictions: Iterable[Prediction], dataset: Dataset) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return each detection's score and whether it is right: float64 [K] and bool [K], by image, in their order.

    Those that ``match_detections`` calls ignored are left out, and those that score no more than ``MIN_SCORE``. Boxes
    are in the images' pixels. Raises ``KeyError`` for an unknown image id.
    """
    samples = {sample.image_id: sample for sample in dataset.samples}
    all_scores, all_matches = [np.empty(0)], [np.empty(0, np.int64)]
    for image_id, boxes, scores, class_ids in predictions:
        all_scores.append(np.asarray(scores, np.float64))
        all_matches.append(match_detections(boxes, scores, class_ids, samples[image_id]))
    scores, matches = np.concatenate(all_scores), np.concatenate(all_matches)
    counted = (matches != IGNORED) & (scores > MIN_SCORE)
    return scores[counted], matches[counted] >= 0


def precision_recall_curve(scores: Floats, right: npt.NDArray[np.bool_], boxes: int) -> PrecisionRecallCurve:
    """Compute the curve of scores [K] and verdicts [K] with ``boxes`` to detect: a point for each different score."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    detections = np.arange(1, len(order) + 1)
    last = np.append(np.diff(scores[order]) < 0, True)[: len(order)]  # a threshold separates different scores only
    hits, detections = hits[last], detections[last]
    f1 = 2 * hits / (detections + boxes)
    return PrecisionRecallCurve(scores[order][last], hits / detections, hits / max(1, boxes), f1)


def build_score_report(
    predictions: Iterable[Prediction], dataset: Dataset, threshold: float | None = None
) -> ScoreReport:
    """Judge and summarise predictions; threshold: the detector's default. Raise ``ValueError`` without detections."""
    scores, right = judge_detections(predictions, dataset)
    if not len(scores):
        raise ValueError("Nothing was detected: there are no scores to judge.")
    boxes = sum(int((~sample.ignore).sum()) for sample in dataset.samples)
    curve = precision_recall_curve(scores, right, boxes)
    best = int(curve.f1.argmax())
    below = curve.lowest[best + 1] if best + 1 < len(curve.lowest) else 0.0
    between = float((curve.lowest[best] + below) / 2)
    return ScoreReport(
        best=operating_point(scores, right, boxes, len(dataset), between),
        served=None if threshold is None else operating_point(scores, right, boxes, len(dataset), threshold),
        calibration_error=expected_calibration_error(scores, right),
        detections=len(scores),
        bins=reliability_bins(scores, right),
    )


def operating_point(
    scores: Floats, right: npt.NDArray[np.bool_], boxes: int, images: int, threshold: float
) -> OperatingPoint:
    """Measure the detections that score strictly above the threshold; precision is 1 where there are none."""
    above = scores > threshold
    hits, detections = int(right[above].sum()), int(above.sum())
    return OperatingPoint(
        threshold=threshold,
        precision=hits / detections if detections else 1.0,
        recall=hits / max(1, boxes),
        f1=2 * hits / max(1, detections + boxes),
        false_per_image=(detections - hits) / max(1, images),
    )


def reliability_bins(scores: Floats, right: npt.NDArray[np.bool_]) -> tuple[ReliabilityBin, ...]:
    """Return the detections in ten bins of equal width by score, for a reliability diagram."""
    return tuple(_bin(scores, right, i / _BINS, (i + 1) / _BINS) for i in range(_BINS))


def expected_calibration_error(scores: Floats, right: npt.NDArray[np.bool_]) -> float:
    """Compute the expected calibration error over ten bins; 0 without detections."""
    gaps = [
        b.detections * abs(b.mean_score - b.precision)
        for b in reliability_bins(scores, right)
        if b.mean_score is not None and b.precision is not None
    ]
    return sum(gaps) / max(1, len(scores))


def _bin(scores: Floats, right: npt.NDArray[np.bool_], low: float, high: float) -> ReliabilityBin:
    """Summarise the detections that score in [low, high); a score of 1 belongs to the last bin."""
    inside = (scores >= low) & ((scores < high) | (high >= 1))
    if not inside.any():
        return ReliabilityBin(low, high, 0, None, None)
    return ReliabilityBin(low, high, int(inside.sum()), float(scores[inside].mean()), float(right[inside].mean()))
