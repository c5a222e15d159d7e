"""Match anchors and regions to the ground truth, and sample them for the losses.

The rules are those of arXiv 1506.01497, sections 3.1.2 and 3.1.3, of py-faster-rcnn and of torchvision:

    anchors  positive: IoU >= 0.7 with a box, or the best anchor of some box (ties kept)
             background: IoU < 0.3 with every box; all others are ignored
             then at most 256 from each image, at most half of them positive
    regions  the RPN's proposals and the ground truth itself; foreground: IoU >= 0.5
             background: below it; then at most 128 (paper) from each image, a quarter of them foreground

Anchors and regions on a box that is to be ignored ("difficult" in VOC, "crowd" in COCO) never count as background.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model import boxes as box_ops
from model.config import SamplingConfig

# Values beside row numbers in the result of ``match_boxes``.
BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class Truth:
    """The ground truth of one image on its canvas.

    boxes: float32 [G, 4], canvas pixels. class_ids: int64 [G], 1 and up. ignored: float32 [K, 4], boxes that are
    neither object nor background. size: height and width of the image on the canvas.
    """

    boxes: Tensor
    class_ids: Tensor
    ignored: Tensor
    size: tuple[int, int]


def match_boxes(overlaps: Tensor, positive: float, negative: float, *, keep_best: bool = False) -> Tensor:
    """Return for each of N boxes the row of the true box that it matches, ``BACKGROUND`` or ``IGNORED``: int64 [N].

    overlaps: IoU [G, N]. A box matches the true box it overlaps most, if by at least ``positive``; it is background
    where that is below ``negative``. keep_best: the best box of each true box is matched too, to the true box that it
    overlaps most itself, however low the overlap, with all ties (arXiv 1506.01497, section 3.1.2, condition i),
    unless nothing overlaps.
    """
    if overlaps.shape[0] == 0:
        return torch.full((overlaps.shape[1],), BACKGROUND, dtype=torch.int64, device=overlaps.device)
    best, nearest = overlaps.max(dim=0)
    matched = torch.where(best >= positive, nearest, torch.full_like(nearest, IGNORED))
    matched[best < negative] = BACKGROUND
    if keep_best:
        highest = overlaps.max(dim=1, keepdim=True).values
        best_of_a_box = ((overlaps == highest) & (highest > 0)).any(dim=0)
        matched[best_of_a_box] = nearest[best_of_a_box]
    return matched


def exclude_ignored(matched: Tensor, boxes: Tensor, ignored: Tensor, overlap: float) -> Tensor:
    """Return ``matched`` [N] with background on an ignored box [K, 4] turned to ``IGNORED``; boxes float32 [N, 4]."""
    if len(ignored) == 0:
        return matched
    on_ignored = (box_ops.iou(ignored, boxes) >= overlap).any(dim=0)
    return torch.where(on_ignored & (matched == BACKGROUND), torch.full_like(matched, IGNORED), matched)


def sample_balanced(
    matched: Tensor, count: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw positions of positives and of background at random: at most ``count`` together, int64 each.

    Positives fill at most ``positive_fraction`` of the sample; background fills the rest.
    """

    def draw(candidates: Tensor, limit: int) -> Tensor:
        order = torch.randperm(len(candidates), generator=generator)[:limit]
        return candidates[order.to(candidates.device)]

    positives = draw(torch.nonzero(matched >= 0).squeeze(1), int(count * positive_fraction))
    background = draw(torch.nonzero(matched == BACKGROUND).squeeze(1), count - len(positives))
    return positives, background


@dataclass(frozen=True)
class AnchorTargets:
    """Targets of one image's sampled anchors.

    positives, background: int64 positions among the N anchors. deltas: float32 [P, 4], of the positives.
    """

    positives: Tensor
    background: Tensor
    deltas: Tensor


@torch.no_grad()
def anchor_targets(anchors: Tensor, truth: Truth, config: SamplingConfig, generator: torch.Generator) -> AnchorTargets:
    """Sample the anchors float32 [N, 4] of one image, canvas pixels, and return their targets."""
    matched = match_boxes(
        box_ops.iou(truth.boxes, anchors), config.rpn_positive_iou, config.rpn_negative_iou, keep_best=True
    )
    matched = exclude_ignored(matched, anchors, truth.ignored, config.rpn_negative_iou)
    if not config.cross_boundary:
        height, width = truth.size
        inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
        matched = torch.where(inside, matched, torch.full_like(matched, IGNORED))
    positives, background = sample_balanced(matched, config.rpn_batch, config.rpn_positive_fraction, generator)
    deltas = box_ops.encode(truth.boxes[matched[positives]], anchors[positives])
    return AnchorTargets(positives, background, deltas)


@dataclass(frozen=True)
class RegionTargets:
    """One image's sampled regions and their targets.

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
    config: SamplingConfig,
    box_weights: tuple[float, float, float, float],
    generator: torch.Generator,
) -> RegionTargets:
    """Sample regions of one image from the RPN's proposals float32 [R, 4] and the ground truth, canvas pixels."""
    boxes = torch.cat((proposals, truth.boxes))
    matched = match_boxes(box_ops.iou(truth.boxes, boxes), config.roi_positive_iou, config.roi_positive_iou)
    if config.roi_negative_iou > 0 and len(truth.boxes):
        best = box_ops.iou(truth.boxes, boxes).max(dim=0).values
        matched[(matched == BACKGROUND) & (best < config.roi_negative_iou)] = IGNORED
    matched = exclude_ignored(matched, boxes, truth.ignored, config.roi_positive_iou)
    positives, background = sample_balanced(matched, config.roi_batch, config.roi_positive_fraction, generator)
    sampled = torch.cat((positives, background))
    class_ids = torch.zeros(len(sampled), dtype=torch.int64, device=boxes.device)
    deltas = torch.zeros((len(sampled), 4), device=boxes.device)
    rows = matched[positives]
    class_ids[: len(positives)] = truth.class_ids[rows]
    deltas[: len(positives)] = box_ops.encode(truth.boxes[rows], boxes[positives], box_weights)
    return RegionTargets(boxes[sampled], class_ids, deltas)
