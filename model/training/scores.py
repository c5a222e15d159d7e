"""What a score is worth: the threshold to serve with, and whether 0.8 means right eight times in ten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model import boxes as box_ops
from model.training.data import Dataset, Sample
from model.training.evaluate import Prediction

_OVERLAP = 0.5  # what counts as found, as VOC does
_BINS = 10


@dataclass(frozen=True)
class Bin:
    """Detections whose score lies in [low, high). mean_score, precision: None where there are none."""

    low: float
    high: float
    detections: int
    mean_score: float | None
    precision: float | None


@dataclass(frozen=True)
class ScoreReport:
    """How scores relate to being right, over all classes together; figures from 0 to 1.

    threshold: the score at which F1 is best; precision, recall, f1: of what scores above it.
    calibration_error: expected calibration error, the mean gap between score and precision over the bins, weighted by
        detections. detections: those judged, ignored ones left out. false_per_picture: wrong ones above the threshold.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    calibration_error: float
    false_per_picture: float
    detections: int
    bins: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def judge(predictions: Iterable[Prediction], dataset: Dataset) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Each detection's score and whether it is right: float64 [K] and bool [K], by picture.

    Within a picture and class the highest scores choose first; a box is found once. A detection that finds no box but
    lies on an ignored one is left out. Boxes in the pictures' pixels; raises ``KeyError`` for an unknown picture id.
    """
    samples = {sample.image_id: sample for sample in dataset.samples}
    scores: list[float] = []
    right: list[bool] = []
    for image_id, boxes, confidence, class_ids in predictions:
        sample = samples[image_id]
        for class_id in np.unique(np.asarray(class_ids)):
            mine = np.flatnonzero(np.asarray(class_ids) == class_id)
            mine = mine[np.argsort(-np.asarray(confidence)[mine], kind="stable")]
            for place, verdict in zip(mine, _verdicts(np.asarray(boxes)[mine], sample, int(class_id)), strict=True):
                if verdict is not None:
                    scores.append(float(confidence[place]))
                    right.append(verdict)
    return np.array(scores), np.array(right, dtype=bool)


def report(predictions: Iterable[Prediction], dataset: Dataset) -> ScoreReport:
    """Judge the predictions and sum up. Raises ``ValueError`` where nothing was detected at all."""
    scores, right = judge(predictions, dataset)
    if not len(scores):
        raise ValueError("Nothing was detected: there are no scores to judge.")
    wanted = sum(int((~sample.ignore).sum()) for sample in dataset.samples)
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(right[order])
    taken = np.arange(1, len(order) + 1)
    f1 = 2 * found / (taken + wanted)
    # A threshold lies between two different scores.
    last = np.append(np.diff(scores[order]) < 0, True)
    best = int(np.argmax(np.where(last, f1, -1)))
    below = scores[order][best + 1] if best + 1 < len(order) else 0.0
    bins = tuple(_bin(scores, right, i / _BINS, (i + 1) / _BINS) for i in range(_BINS))
    gap = sum(b.detections * abs(b.mean_score - b.precision) for b in bins if b.precision is not None and b.mean_score)
    return ScoreReport(
        threshold=float((scores[order][best] + below) / 2),
        precision=float(found[best] / taken[best]),
        recall=float(found[best] / max(1, wanted)),
        f1=float(f1[best]),
        calibration_error=float(gap / len(scores)),
        false_per_picture=float((taken[best] - found[best]) / len(dataset)),
        detections=len(scores),
        bins=bins,
    )


def _verdicts(boxes: npt.NDArray[Any], sample: Sample, class_id: int) -> list[bool | None]:
    """Of boxes [K, 4] of one class by falling score: right, wrong, or None for those on an ignored box."""
    of_class = sample.class_ids == class_id
    ignored = sample.ignore[of_class]
    overlaps = box_ops.iou(torch.as_tensor(boxes).float(), torch.from_numpy(sample.boxes[of_class])).numpy()
    free = ~ignored
    verdicts: list[bool | None] = []
    for row in overlaps:
        candidates = np.where(free, row, -1.0)
        if candidates.size and candidates.max() >= _OVERLAP:
            free[int(candidates.argmax())] = False
            verdicts.append(True)
        else:
            verdicts.append(None if (row[ignored] >= _OVERLAP).any() else False)
    return verdicts


def _bin(scores: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], low: float, high: float) -> Bin:
    inside = (scores >= low) & ((scores < high) | (high >= 1))
    if not inside.any():
        return Bin(low, high, 0, None, None)
    return Bin(low, high, int(inside.sum()), float(scores[inside].mean()), float(right[inside].mean()))
