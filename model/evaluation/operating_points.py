"""What a score is worth: the threshold to serve with, and whether 0.8 means right eight times in ten.

D  detections of a picture      K  those judged, of all pictures      C  classes, background first
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model import boxes as box_ops
from model.evaluation.coco import Prediction
from model.training.samples import Dataset, Sample

WRONG, IGNORED = -1, -2

_OVERLAP = 0.5  # what counts as found, as VOC does
# At or below this a detection promises nothing, and is not judged: there are any number, and they would hide the rest.
HEARD = 0.01
_BINS = 10

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """What a threshold gives: of the detections that score above it, figures from 0 to 1; wrong ones a picture."""

    threshold: float
    precision: float
    recall: float
    f1: float
    false_per_picture: float


@dataclass(frozen=True)
class Curve:
    """Precision, recall and F1, float64 [P], of taking all that scores ``lowest`` or more; ``lowest`` falls."""

    lowest: Floats
    precision: Floats
    recall: Floats
    f1: Floats


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

    best: the threshold of the best F1 on these pictures. served: what the detector's own default threshold, chosen
        elsewhere, gives here; None where none was named.
    calibration_error: expected calibration error, the mean gap between score and precision over the bins, weighted by
        detections. detections: those judged, ignored ones left out.
    """

    best: Point
    served: Point | None
    calibration_error: float
    detections: int
    bins: tuple[Bin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def match(boxes: Any, scores: Any, class_ids: Any, sample: Sample) -> npt.NDArray[np.int64]:
    """For each detection of one picture the box of the sample that it finds, int64 [D], or ``WRONG``, or ``IGNORED``.

    boxes [D, 4] in the picture's pixels, scores [D] and class_ids [D], tensors or arrays. Within a class the highest
    scores choose first, and a box is found once. ``IGNORED``: it finds no box, but lies on one that does not count.
    """
    boxes, scores, class_ids = np.asarray(boxes), np.asarray(scores), np.asarray(class_ids)
    found = np.full(len(scores), WRONG, np.int64)
    for class_id in np.unique(class_ids):
        mine = np.flatnonzero(class_ids == class_id)
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        targets = np.flatnonzero(sample.class_ids == class_id)
        ignored = sample.ignore[targets]
        there = torch.from_numpy(sample.boxes[targets])
        overlaps = box_ops.iou(torch.as_tensor(boxes[mine]).float(), there).numpy()
        free = ~ignored
        for place, row in zip(mine, overlaps, strict=True):
            candidates = np.where(free, row, -1.0)
            if candidates.size and candidates.max() >= _OVERLAP:
                free[candidates.argmax()] = False
                found[place] = targets[candidates.argmax()]
            elif (row[ignored] >= _OVERLAP).any():
                found[place] = IGNORED
    return found


def judge(predictions: Iterable[Prediction], dataset: Dataset) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Each detection's score and whether it is right: float64 [K] and bool [K], by picture, in the order given.

    Those that ``match`` calls ignored are left out, and those that score no more than ``HEARD``. Boxes in the pictures'
    pixels; raises ``KeyError`` for an unknown picture id.
    """
    samples = {sample.image_id: sample for sample in dataset.samples}
    scores, found = [np.empty(0)], [np.empty(0, np.int64)]
    for image_id, boxes, confidence, class_ids in predictions:
        scores.append(np.asarray(confidence, np.float64))
        found.append(match(boxes, confidence, class_ids, samples[image_id]))
    every, verdicts = np.concatenate(scores), np.concatenate(found)
    counted = (verdicts != IGNORED) & (every > HEARD)
    return every[counted], verdicts[counted] >= 0


def curve(scores: Floats, right: npt.NDArray[np.bool_], wanted: int) -> Curve:
    """From scores [K] and verdicts [K], with ``wanted`` boxes to find; a point for each different score."""
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(right[order])
    taken = np.arange(1, len(order) + 1)
    last = np.append(np.diff(scores[order]) < 0, True)[: len(order)]  # a threshold parts different scores only
    found, taken = found[last], taken[last]
    return Curve(scores[order][last], found / taken, found / max(1, wanted), 2 * found / (taken + wanted))


def report(predictions: Iterable[Prediction], dataset: Dataset, threshold: float | None = None) -> ScoreReport:
    """Judge predictions and sum up; threshold: the detector's own. Raises ``ValueError`` where nothing was found."""
    scores, right = judge(predictions, dataset)
    if not len(scores):
        raise ValueError("Nothing was detected: there are no scores to judge.")
    wanted = sum(int((~sample.ignore).sum()) for sample in dataset.samples)
    line = curve(scores, right, wanted)
    best = int(line.f1.argmax())
    below = line.lowest[best + 1] if best + 1 < len(line.lowest) else 0.0
    between = float((line.lowest[best] + below) / 2)
    return ScoreReport(
        best=point(scores, right, wanted, len(dataset), between),
        served=None if threshold is None else point(scores, right, wanted, len(dataset), threshold),
        calibration_error=calibration_error(scores, right),
        detections=len(scores),
        bins=bins(scores, right),
    )


def point(scores: Floats, right: npt.NDArray[np.bool_], wanted: int, pictures: int, threshold: float) -> Point:
    """What detections that score strictly above the threshold come to; precision is 1 where there are none."""
    above = scores > threshold
    found, taken = int(right[above].sum()), int(above.sum())
    return Point(
        threshold=threshold,
        precision=found / taken if taken else 1.0,
        recall=found / max(1, wanted),
        f1=2 * found / max(1, taken + wanted),
        false_per_picture=(taken - found) / max(1, pictures),
    )


def bins(scores: Floats, right: npt.NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Ten of equal width, for a reliability diagram."""
    return tuple(_bin(scores, right, i / _BINS, (i + 1) / _BINS) for i in range(_BINS))


def calibration_error(scores: Floats, right: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error over ten bins; 0 for no detections."""
    gaps = [
        b.detections * abs(b.mean_score - b.precision)
        for b in bins(scores, right)
        if b.mean_score is not None and b.precision is not None
    ]
    return sum(gaps) / max(1, len(scores))


@dataclass(frozen=True)
class Calibration:
    """A last class layer's correction: softmax(logits / temperature + background * [the background's]).

    Both fold into that layer's weights and biases, so that no code need know of them.
    """

    temperature: float = 1.0
    background: float = 0.0

    def inverse(self) -> Calibration:
        """What takes this one out again."""
        return Calibration(1 / self.temperature, -self.background * self.temperature)


def recalibrated(distributions: npt.NDArray[np.floating], calibration: Calibration) -> Floats:
    """Class probabilities [K, C] after the correction, from those before."""
    logits = _corrected(_logits(distributions), calibration.temperature, calibration.background)
    return logits.softmax(dim=1).numpy()


def calibrated(
    distributions: npt.NDArray[np.floating], class_ids: npt.NDArray[np.int64], calibration: Calibration
) -> Floats:
    """The scores [K] after the correction, from the probabilities before [K, C] and the classes found [K]."""
    chosen: Floats = recalibrated(distributions, calibration)[np.arange(len(class_ids)), class_ids]
    return chosen


def fit_calibration(
    distributions: npt.NDArray[np.floating],
    class_ids: npt.NDArray[np.int64],
    right: npt.NDArray[np.bool_],
    *,
    background: bool = True,
) -> Calibration:
    """The correction whose scores make it likeliest that these are right and those wrong.

    distributions [K, C]: each detection's class probabilities as they are; class_ids [K]: what it was called; right
    [K]. Guo et al. (arXiv 1706.04599) fit a classifier's temperature by its log loss; here the event is that the
    detection is right, box and all, since that is what a score promises. background: fit the second number too. The
    detector is trained on regions of which a quarter are objects and served on many more that are not, or are second
    boxes on one thing; a shift of prior adds a constant to one logit.
    """
    if not len(right):
        return Calibration()
    logits, verdicts = _logits(distributions), torch.from_numpy(right.astype(np.float64))
    rows = torch.arange(len(right)), torch.from_numpy(class_ids)
    unknowns = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of temperature, background
    mask = torch.tensor([1.0, float(background)], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([unknowns], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        heat, shift = (unknowns * mask).unbind()
        scores = _corrected(logits, heat.exp(), shift).softmax(dim=1)[rows].clamp(1e-12, 1 - 1e-12)
        value = torch.nn.functional.binary_cross_entropy(scores, verdicts)
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    heat, shift = (unknowns * mask).tolist()
    return Calibration(math.exp(heat), shift)


def _logits(distributions: npt.NDArray[np.floating]) -> torch.Tensor:
    """Up to a constant, which the next softmax does not see."""
    return torch.from_numpy(np.log(np.maximum(distributions.astype(np.float64), 1e-30)))


def _corrected(
    logits: torch.Tensor, temperature: torch.Tensor | float, background: torch.Tensor | float
) -> torch.Tensor:
    shift = torch.zeros(logits.shape[1], dtype=logits.dtype)
    shift[0] = 1.0
    return logits / temperature + background * shift


def _bin(scores: Floats, right: npt.NDArray[np.bool_], low: float, high: float) -> Bin:
    inside = (scores >= low) & ((scores < high) | (high >= 1))
    if not inside.any():
        return Bin(low, high, 0, None, None)
    return Bin(low, high, int(inside.sum()), float(scores[inside].mean()), float(right[inside].mean()))
