"""Where a detector is wrong on labelled pictures, in words: by picture id, never by pixels.

A false detection is ``second`` where the box of its class that it lies on was found by a higher score, ``other class``
where it lies on a box of another, ``misplaced`` where it overlaps a box of its class too little, and else there is
``nothing`` that is labelled; some labels are missing. A miss is told in ``explain``'s words.
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
    """One that is wrong, in the picture whose file has this name. other, iou: the box that it touches, if any."""

    picture: str
    label: str
    score: float
    fault: str
    other: str
    iou: float

    def words(self) -> str:
        """One sentence."""
        where = {
            "other class": f"lies on a {self.other} (IoU {self.iou:.2f})",
            "second": f"a second box on one {self.other} (IoU {self.iou:.2f})",
            "misplaced": f"too far off its {self.other} (IoU {self.iou:.2f})",
            "nothing": "where nothing is labelled",
        }
        return f"`{self.picture}`: {self.label} at {self.score:.2f}, {where[self.fault]}"


@dataclass(frozen=True)
class Miss:
    """A labelled box that nothing above the threshold finds. part: its share of the picture's area."""

    picture: str
    label: str
    part: float
    stage: str
    sentence: str

    def words(self) -> str:
        """One sentence, and the explanation's."""
        why = self.sentence
        if self.stage == "found":
            why = "A detection lies on it, but counts for another box of its class."
        return f"`{self.picture}`: {self.label}, {self.part:.0%} of the picture ({self.stage}). {why}"


def failures(
    sample: Sample, found: Detections, classes: Sequence[str], threshold: float
) -> tuple[list[FalseDetection], list[Miss]]:
    """Of one picture, above the threshold. found: with its trace, of a threshold no higher than this one."""
    above = found.scores > threshold
    boxes, scores, class_ids = found.boxes[above], found.scores[above], found.class_ids[above]
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
    assert found.trace is not None
    # NMS goes by falling score, so that a higher threshold only leaves out the end of what it kept.
    pairs = found.trace.found
    kept = pairs[found.trace.scores[pairs[:, 0], pairs[:, 1]] > threshold]
    trace = replace(found.trace, found=kept, options=replace(found.trace.options, score_threshold=threshold))
    names = [classes[c] for c in sample.class_ids[missed]]
    stories = explain(trace, labelled[missed], names)
    sides = sample.boxes[missed, 2:] - sample.boxes[missed, :2]
    parts = sides.prod(axis=1) / (sample.width * sample.height)
    return false, [
        Miss(sample.path.stem, name, float(part), story.stage, story.sentence)
        for name, part, story in zip(names, parts, stories, strict=True)
    ]


@dataclass(frozen=True)
class Seen:
    """What one pass over a part found. distributions: by picture float32 [D, C], each detection's class scores."""

    predictions: list[Prediction]
    distributions: list[NDArray[np.float32]]
    false: list[FalseDetection]
    misses: list[Miss]


def watch(detector: Detector, dataset: Dataset, threshold: float, options: DetectOptions = WHOLE_CURVE) -> Seen:
    """One pass with traces. threshold: above it a false detection or a miss is a failure."""
    seen = Seen([], [], [], [])
    for sample, found in run_detector(detector, dataset, replace(options, trace=True)):
        assert found.trace is not None
        arrays = (found.boxes.numpy(), found.scores.numpy(), found.class_ids.numpy())
        seen.predictions.append((sample.image_id, *arrays))
        seen.distributions.append(found.trace.scores[found.proposal_indices].numpy())
        false, misses = failures(sample, found, dataset.classes, threshold)
        seen.false.extend(false)
        seen.misses.extend(misses)
    return seen


def summary(false: Sequence[FalseDetection], misses: Sequence[Miss], shown: int = 5) -> dict[str, Any]:
    """Counts by fault and by stage; in words the surest false detections and the largest misses."""
    surest = sorted(false, key=lambda one: -one.score)[:shown]
    largest = sorted(misses, key=lambda one: -one.part)[:shown]
    return {
        "false": dict(Counter(one.fault for one in false).most_common()),
        "missed": dict(Counter(one.stage for one in misses).most_common()),
        "surest_false": [one.words() for one in surest],
        "largest_missed": [one.words() for one in largest],
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
