"""Which anchors and regions learn what: matching to the ground truth, and the samplers (P 3.1.2, 3.1.3; PFR; TV).

    anchors  object: IoU >= 0.7 with a box, or the best anchor of some box (ties kept)
             background: IoU < 0.3 with every box; all others are left out
             then at most 256 a picture, at most half of them object
    regions  the RPN's proposals and the ground truth itself; foreground: IoU >= 0.5
             background: below it; then at most 128 (paper) a picture, a quarter of them foreground

What lies on a box that is to be ignored ("difficult" in VOC, "crowd" in COCO) never counts as background.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model import boxes as box_ops
from model.config import TrainConfig

BACKGROUND = -1
LEFT_OUT = -2


@dataclass(frozen=True)
class Truth:
    """The ground truth of one picture on its canvas.

    boxes: float32 [G, 4], canvas pixels. class_ids: int64 [G], 1 and up. ignored: float32 [K, 4], boxes that count
    neither way. size: height and width of the picture on the canvas.
    """

    boxes: Tensor
    class_ids: Tensor
    ignored: Tensor
    size: tuple[int, int]


def match(overlaps: Tensor, positive: float, negative: float, *, keep_best: bool = False) -> Tensor:
    """For each of N boxes the row of the truth it belongs to, ``BACKGROUND`` or ``LEFT_OUT``: int64 [N].

    overlaps: IoU [G, N]. A box belongs to the truth it overlaps most, if by at least ``positive``; it is background
    where that is below ``negative``. keep_best: the best box of each truth belongs to its own best truth however low
    the overlap, every tied one too (P 3.1.2, condition i), unless nothing overlaps at all.
    """
    if overlaps.shape[0] == 0:
        return torch.full((overlaps.shape[1],), BACKGROUND, dtype=torch.int64, device=overlaps.device)
    best, nearest = overlaps.max(dim=0)
    matched = torch.where(best >= positive, nearest, torch.full_like(nearest, LEFT_OUT))
    matched[best < negative] = BACKGROUND
    if keep_best:
        highest = overlaps.max(dim=1, keepdim=True).values
        rescued = ((overlaps == highest) & (highest > 0)).any(dim=0)
        matched[rescued] = nearest[rescued]
    return matched


def leave_out(matched: Tensor, boxes: Tensor, ignored: Tensor, overlap: float) -> Tensor:
    """``matched`` [N] with the background among ``boxes`` [N, 4] left out where it lies on an ignored box [K, 4]."""
    if len(ignored) == 0:
        return matched
    on_ignored = (box_ops.iou(ignored, boxes) >= overlap).any(dim=0)
    return torch.where(on_ignored & (matched == BACKGROUND), torch.full_like(matched, LEFT_OUT), matched)


def sample(matched: Tensor, count: int, positive_fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions of the positives and of the background drawn at random: at most ``count`` together.

    Positives fill at most ``positive_fraction`` of the sample; background fills what is left.
    """

    def draw(candidates: Tensor, limit: int) -> Tensor:
        order = torch.randperm(len(candidates), generator=generator)[:limit]
        return candidates[order.to(candidates.device)]

    positives = draw(torch.nonzero(matched >= 0).squeeze(1), int(count * positive_fraction))
    background = draw(torch.nonzero(matched == BACKGROUND).squeeze(1), count - len(positives))
    return positives, background


@dataclass(frozen=True)
class AnchorTargets:
    """What one picture's sampled anchors should say. positives, background: int64 positions among N; deltas: [P, 4]."""

    positives: Tensor
    background: Tensor
    deltas: Tensor


@torch.no_grad()
def anchor_targets(anchors: Tensor, truth: Truth, config: TrainConfig, generator: torch.Generator) -> AnchorTargets:
    """Sampled targets for the anchors float32 [N, 4] of one picture, canvas pixels."""
    matched = match(box_ops.iou(truth.boxes, anchors), config.rpn_positive_iou, config.rpn_negative_iou, keep_best=True)
    matched = leave_out(matched, anchors, truth.ignored, config.rpn_negative_iou)
    if not config.cross_boundary:
        height, width = truth.size
        inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
        matched = torch.where(inside, matched, torch.full_like(matched, LEFT_OUT))
    positives, background = sample(matched, config.rpn_batch, config.rpn_positive_fraction, generator)
    deltas = box_ops.encode(truth.boxes[matched[positives]], anchors[positives])
    return AnchorTargets(positives, background, deltas)


@dataclass(frozen=True)
class RegionTargets:
    """One picture's sampled regions.

    boxes: float32 [S, 4]. class_ids: int64 [S], 0 for background. deltas: float32 [S, 4], multiplied by the head's box
    weights, and meaningful where the class is not background.
    """

    boxes: Tensor
    class_ids: Tensor
    deltas: Tensor


@torch.no_grad()
def region_targets(
    proposals: Tensor,
    truth: Truth,
    config: TrainConfig,
    box_weights: tuple[float, float, float, float],
    generator: torch.Generator,
) -> RegionTargets:
    """Sampled regions of one picture, from the RPN's proposals float32 [R, 4] and the ground truth, canvas pixels."""
    boxes = torch.cat((proposals, truth.boxes))
    matched = match(box_ops.iou(truth.boxes, boxes), config.roi_positive_iou, config.roi_positive_iou)
    if config.roi_negative_iou > 0 and len(truth.boxes):
        best = box_ops.iou(truth.boxes, boxes).max(dim=0).values
        matched[(matched == BACKGROUND) & (best < config.roi_negative_iou)] = LEFT_OUT
    matched = leave_out(matched, boxes, truth.ignored, config.roi_positive_iou)
    positives, background = sample(matched, config.roi_batch, config.roi_positive_fraction, generator)
    chosen = torch.cat((positives, background))
    class_ids = torch.zeros(len(chosen), dtype=torch.int64, device=boxes.device)
    deltas = torch.zeros((len(chosen), 4), device=boxes.device)
    rows = matched[positives]
    class_ids[: len(positives)] = truth.class_ids[rows]
    deltas[: len(positives)] = box_ops.encode(truth.boxes[rows], boxes[positives], box_weights)
    return RegionTargets(boxes[chosen], class_ids, deltas)
