"""Two detectors' answers side by side: the largest differences, and a reason for every box without counterpart."""

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

    Those without must each owe it to a tie, as ``compare`` explains.
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


def compare(ours: Answer, reference: Answer, settings: DetectorConfig) -> Difference:
    """The largest differences, every box beside its counterpart; ``AssertionError`` where one has none for no reason.

    The reasons that count: float32 rounding, which differs from one processor to another, can decide otherwise whether
    an IoU passes NMS's threshold (and then which of two boxes lives) or which side of a threshold or of the cut a score
    falls. So a box without counterpart must have an IoU or a score within 1e-4 of such a limit, or have lived because
    the other answer's odd one did not; and there may be hardly any.
    """
    for answer in (ours, reference):
        assert bool((answer.scores.diff() <= 0).all())
        assert bool((answer.objectness.diff() <= 0).all())
    proposals, head = settings.rpn, settings.roi_head
    same_level = torch.zeros(max(len(ours.proposals), len(reference.proposals)), dtype=torch.int64)
    proposal, objectness, odd_proposals = _matched(
        (ours.proposals, ours.objectness, same_level[: len(ours.proposals)]),
        (reference.proposals, reference.objectness, same_level[: len(reference.proposals)]),
        proposals.nms_threshold,
        proposals.score_threshold,
        proposals.post_nms,
    )
    box, score, odd_detections = _matched(
        (ours.boxes, ours.scores, ours.labels),
        (reference.boxes, reference.scores, reference.labels),
        head.nms_threshold,
        head.score_threshold,
        head.max_detections,
        excused=odd_proposals,
    )
    assert odd_proposals <= max(4, len(reference.proposals) // 100)
    assert odd_detections <= 2 + odd_proposals
    return Difference(box, score, proposal, objectness, odd_proposals, odd_detections)


Boxes = tuple[Tensor, Tensor, Tensor]  # boxes [N, 4], scores [N], labels [N]


def _matched(
    ours: Boxes, reference: Boxes, nms_threshold: float, score_threshold: float, limit: int, excused: int = 0
) -> tuple[float, float, int]:
    """Largest difference of boxes and of scores, each with the nearest of its label, and how many have no counterpart.

    Not place by place: two scores a rounding apart may change places. excused: proposals that differ, whose detections
    need no reason of their own.
    """
    (boxes, scores, labels), (their_boxes, their_scores, their_labels) = ours, reference
    free = torch.ones(len(boxes), dtype=torch.bool)
    odd: list[int] = []
    worst_box = worst_score = 0.0
    for i in range(len(their_boxes)):
        distance = (boxes - their_boxes[i]).abs().amax(dim=1)
        distance[~free | (labels != their_labels[i]) | ((scores - their_scores[i]).abs() > 1e-3)] = torch.inf
        if not len(distance) or float(distance.min()) > 0.1:
            odd.append(i)
            continue
        nearest = int(distance.argmin())
        free[nearest] = False
        worst_box = max(worst_box, float(distance[nearest]))
        worst_score = max(worst_score, float((scores[nearest] - their_scores[i]).abs()))
    our_odd = free.nonzero().squeeze(1)
    their_odd = torch.tensor(odd, dtype=torch.int64)
    if not excused:
        everyone = torch.cat((boxes, their_boxes))
        for kept, others, all_scores in (
            ((boxes[our_odd], scores[our_odd]), their_boxes[their_odd], scores),
            ((their_boxes[their_odd], their_scores[their_odd]), boxes[our_odd], their_scores),
        ):
            for box, score in zip(*kept, strict=True):
                tie = bool(((box_iou(box[None], everyone) - nms_threshold).abs() < 1e-4).any())
                instead = bool((box_iou(box[None], others) > nms_threshold).any())
                at_threshold = abs(float(score) - score_threshold) < 1e-4
                at_cut = len(all_scores) == limit and float(score - all_scores[-1]) < 1e-4
                assert tie or instead or at_threshold or at_cut, f"no counterpart of {box.tolist()}, {float(score)}"
    return worst_box, worst_score, len(our_odd) + len(their_odd)
