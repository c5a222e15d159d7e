"""Describe where a detector is wrong on labelled images in words, by image id.

A false detection is ``second`` where the labelled box that it lies on was detected with a higher score, ``other class``
where it lies on a box of another class, ``misplaced`` where it overlaps a box of its class too little, and else
``nothing``: nothing is labelled there, though some labels are missing. A miss is described in ``explain``'s words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model import boxes as box_ops
from model.data import Dataset, Sample
from model.detector import Detections, DetectOptions, Detector, explain
from model.evaluation.operating_points import WRONG, match_detections
from model.evaluation.predictions import WHOLE_CURVE, Prediction, run_detector

_TOUCHES = 0.1  # below this overlap two boxes have nothing to do with one another


@dataclass(frozen=True)
class FalseDetection:
    """A detection that is wrong, in the image whose file has this name. other, iou: the box that it touches, if any."""

    image: str
    label: str
    score: float
    fault: str
    other: str
    iou: float

    def words(self) -> str:
        """Describe it in one sentence."""
        where = {
            "other class": f"lies on a {self.other} (IoU {self.iou:.2f})",
            "second": f"a second box on one {self.other} (IoU {self.iou:.2f})",
            "misplaced": f"too far off its {self.other} (IoU {self.iou:.2f})",
            "nothing": "where nothing is labelled",
        }
        return f"`{self.image}`: {self.label} at {self.score:.2f}, {where[self.fault]}"


@dataclass(frozen=True)
class Miss:
    """A labelled box that nothing above the threshold finds. part: its share of the image's area."""

    image: str
    label: str
    part: float
    stage: str
    sentence: str

    def words(self) -> str:
        """Describe it in one sentence, followed by the explanation's."""
        why = self.sentence
        if self.stage == "found":
            why = "A detection lies on it, but counts for another box of its class."
        return f"`{self.image}`: {self.label}, {self.part:.0%} of the image ({self.stage}). {why}"


def failures(
    sample: Sample, detections: Detections, classes: Sequence[str], threshold: float
) -> tuple[list[FalseDetection], list[Miss]]:
    """Return the false detections and the misses of one image above the threshold.

    detections: with a trace, from a threshold no higher than this one.
    """
    above = detections.scores > threshold
    boxes, scores, class_ids = detections.boxes[above], detections.scores[above], detections.class_ids[above]
    matches = match_detections(boxes, scores, class_ids, sample)
    labelled = torch.from_numpy(sample.boxes.copy())
    overlaps = box_ops.iou(boxes, labelled).numpy()
    false = [
        _false(sample, classes, int(class_ids[row]), float(scores[row]), overlaps[row])
        for row in np.flatnonzero(matches == WRONG)
    ]
    missed = np.flatnonzero(~sample.ignore & ~np.isin(np.arange(len(sample.boxes)), matches))
    if not len(missed):
        return false, []
    assert detections.trace is not None
    # NMS goes by falling score: a higher threshold only drops the end of what it kept.
    pairs = detections.trace.detected_pairs
    above_threshold = pairs[detections.trace.scores[pairs[:, 0], pairs[:, 1]] > threshold]
    trace = replace(
        detections.trace,
        detected_pairs=above_threshold,
        options=replace(detections.trace.options, score_threshold=threshold),
    )
    names = [classes[c] for c in sample.class_ids[missed]]
    stories = explain(trace, labelled[missed], names)
    sides = sample.boxes[missed, 2:] - sample.boxes[missed, :2]
    parts = sides.prod(axis=1) / (sample.width * sample.height)
    return false, [
        Miss(sample.path.stem, name, float(part), story.stage, story.sentence)
        for name, part, story in zip(names, parts, stories, strict=True)
    ]


@dataclass(frozen=True)
class Evaluated:
    """The answers of one pass over a data set.

    distributions: by image float32 [D, C], each detection's class scores.
    """

    predictions: list[Prediction]
    distributions: list[NDArray[np.float32]]
    false: list[FalseDetection]
    misses: list[Miss]


def evaluate(detector: Detector, dataset: Dataset, threshold: float, options: DetectOptions = WHOLE_CURVE) -> Evaluated:
    """Detect in every image, with traces. threshold: above it a false detection or a miss is a failure."""
    result = Evaluated([], [], [], [])
    for sample, detections in run_detector(detector, dataset, replace(options, trace=True)):
        assert detections.trace is not None
        arrays = (detections.boxes.numpy(), detections.scores.numpy(), detections.class_ids.numpy())
        result.predictions.append((sample.image_id, *arrays))
        result.distributions.append(detections.trace.scores[detections.proposal_indices].numpy())
        false, misses = failures(sample, detections, dataset.classes, threshold)
        result.false.extend(false)
        result.misses.extend(misses)
    return result


def summary(false: Sequence[FalseDetection], misses: Sequence[Miss], shown: int = 5) -> dict[str, Any]:
    """Return counts by fault and by stage, and the surest false detections and the largest misses in words."""
    surest = sorted(false, key=lambda detection: -detection.score)[:shown]
    largest = sorted(misses, key=lambda miss: -miss.part)[:shown]
    return {
        "false": dict(Counter(detection.fault for detection in false).most_common()),
        "missed": dict(Counter(miss.stage for miss in misses).most_common()),
        "surest_false": [detection.words() for detection in surest],
        "largest_missed": [miss.words() for miss in largest],
    }


def _false(sample: Sample, classes: Sequence[str], class_id: int, score: float, overlaps: Any) -> FalseDetection:
    own = np.where(sample.class_ids == class_id, overlaps, 0.0)
    others = np.where(sample.class_ids == class_id, 0.0, overlaps)
    fault, row = "nothing", overlaps
    if own.max(initial=0) >= 0.5:
        fault, row = "second", own
    elif others.max(initial=0) >= 0.5:
        fault, row = "other class", others
    elif own.max(initial=0) >= _TOUCHES:
        fault, row = "misplaced", own
    touched = fault != "nothing"
    other = classes[sample.class_ids[row.argmax()]] if touched else ""
    iou = float(row.max()) if touched else 0.0
    return FalseDetection(sample.path.stem, classes[class_id], score, fault, other, iou)
