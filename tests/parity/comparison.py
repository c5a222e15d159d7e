"""Compare the answers of two detectors: the largest differences, and a reason for every box without counterpart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from model.config import DetectorConfig


@dataclass(frozen=True)
class Answer:
    """One image's answer. Proposals in canvas pixels, detections in the image's."""

    proposals: Tensor
    objectness: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Difference:
    """The largest differences between answers, and how many boxes of either have no counterpart in the other.

    ``compare`` explains which boxes may have none.
    """

    boxes: float = 0.0
    scores: float = 0.0
    proposals: float = 0.0
    objectness: float = 0.0
    tied_proposals: int = 0
    tied_detections: int = 0

    def __or__(self, other: Difference) -> Difference:
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return Difference(*(max(pair) for pair in pairs))


def compare(answer: Answer, reference: Answer, settings: DetectorConfig) -> Difference:
    """Return the largest differences of boxes and counterparts; raise ``AssertionError`` for unexplained ones.

    float32 rounding, which differs from one processor to another, can move an IoU across NMS's threshold, so that the
    other of two boxes is kept, and a score across a threshold or a limit. So a box without counterpart must have an IoU
    or a score within 1e-4 of such a limit, or have been kept in place of an unmatched box of the other answer; and few
    may have none.
    """
    for each in (answer, reference):
        assert bool((each.scores.diff() <= 0).all())
        assert bool((each.objectness.diff() <= 0).all())
    proposals, head = settings.rpn, settings.roi_head
    same_level = torch.zeros(max(len(answer.proposals), len(reference.proposals)), dtype=torch.int64)
    proposal, objectness, unmatched_proposals = _matched(
        (answer.proposals, answer.objectness, same_level[: len(answer.proposals)]),
        (reference.proposals, reference.objectness, same_level[: len(reference.proposals)]),
        proposals.nms_threshold,
        proposals.score_threshold,
        proposals.post_nms,
    )
    box, score, unmatched_detections = _matched(
        (answer.boxes, answer.scores, answer.labels),
        (reference.boxes, reference.scores, reference.labels),
        head.nms_threshold,
        head.score_threshold,
        head.max_detections,
        excused=unmatched_proposals,
    )
    assert unmatched_proposals <= max(4, len(reference.proposals) // 100)
    assert unmatched_detections <= 2 + unmatched_proposals
    return Difference(box, score, proposal, objectness, unmatched_proposals, unmatched_detections)


Boxes = tuple[Tensor, Tensor, Tensor]  # boxes [N, 4], scores [N], labels [N]


def _matched(
    boxes_of_answer: Boxes,
    boxes_of_reference: Boxes,
    nms_threshold: float,
    score_threshold: float,
    limit: int,
    excused: int = 0,
) -> tuple[float, float, int]:
    """Return the largest difference of boxes and of scores from the nearest of the label, and the number of unmatched.

    Boxes are not compared by position: two scores that differ by rounding may change places. excused: the number of
    proposals that differ, whose detections need no reason of their own.
    """
    (boxes, scores, labels), (reference_boxes, reference_scores, reference_labels) = boxes_of_answer, boxes_of_reference
    free = torch.ones(len(boxes), dtype=torch.bool)
    missing: list[int] = []
    worst_box = worst_score = 0.0
    for i in range(len(reference_boxes)):
        distance = (boxes - reference_boxes[i]).abs().amax(dim=1)
        distance[~free | (labels != reference_labels[i]) | ((scores - reference_scores[i]).abs() > 1e-3)] = torch.inf
        if not len(distance) or float(distance.min()) > 0.1:
            missing.append(i)
            continue
        nearest = int(distance.argmin())
        free[nearest] = False
        worst_box = max(worst_box, float(distance[nearest]))
        worst_score = max(worst_score, float((scores[nearest] - reference_scores[i]).abs()))
    unmatched = free.nonzero().squeeze(1)
    absent = torch.tensor(missing, dtype=torch.int64)
    if not excused:
        all_boxes = torch.cat((boxes, reference_boxes))
        for kept, others, all_scores in (
            ((boxes[unmatched], scores[unmatched]), reference_boxes[absent], scores),
            ((reference_boxes[absent], reference_scores[absent]), boxes[unmatched], reference_scores),
        ):
            for box, score in zip(*kept, strict=True):
                tie = bool(((box_iou(box[None], all_boxes) - nms_threshold).abs() < 1e-4).any())
                instead = bool((box_iou(box[None], others) > nms_threshold).any())
                at_threshold = abs(float(score) - score_threshold) < 1e-4
                at_cut = len(all_scores) == limit and float(score - all_scores[-1]) < 1e-4
                assert tie or instead or at_threshold or at_cut, f"no counterpart of {box.tolist()}, {float(score)}"
    return worst_box, worst_score, len(unmatched) + len(absent)
