"""The four losses: RPN objectness and offsets (P eq. 1), detector classes and offsets (Fast R-CNN eq. 1).

Normalisation is PFR's code rather than the paper's text: both RPN terms are divided by the number of sampled anchors
(the paper's lambda of 10 over some 2,400 positions is about the same), both detector terms by the sampled regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import DetectorConfig
from model.faster_rcnn import FasterRCNN
from model.roi_head import stack_regions
from model.structures import ImageBatch
from model.training.targets import AnchorTargets, RegionTargets, Truth, anchor_targets, region_targets


class Losses(NamedTuple):
    """Four scalars, float32, of one batch."""

    objectness: Tensor
    rpn_box: Tensor
    classes: Tensor
    roi_box: Tensor

    def total(self) -> Tensor:
        """Their sum: joint training's loss (P 3.2)."""
        return self.objectness + self.rpn_box + self.classes + self.roi_box


def rpn_losses(logits: Tensor, deltas: Tensor, targets: Sequence[AnchorTargets], beta: float) -> tuple[Tensor, Tensor]:
    """Objectness and offset loss of logits [B, N] and offsets [B, N, 4]: means over the batch's sampled anchors."""
    score_rows, score_targets, offset_rows = [], [], []
    for picture, target in enumerate(targets):
        sampled = torch.cat((target.positives, target.background))
        score_rows.append(logits[picture, sampled])
        labels = torch.zeros(len(sampled), device=logits.device)
        labels[: len(target.positives)] = 1
        score_targets.append(labels)
        offset_rows.append(deltas[picture, target.positives])
    count = max(1, sum(len(rows) for rows in score_rows))
    objectness = F.binary_cross_entropy_with_logits(
        torch.cat(score_rows).float(), torch.cat(score_targets), reduction="sum"
    )
    wanted = torch.cat([target.deltas for target in targets])
    offsets = F.smooth_l1_loss(torch.cat(offset_rows).float(), wanted, beta=beta, reduction="sum")
    return objectness / count, offsets / count


def roi_losses(logits: Tensor, offsets: Tensor, targets: Sequence[RegionTargets], beta: float) -> tuple[Tensor, Tensor]:
    """Class and offset loss of logits [S, classes] and offsets [S, classes, 4] of all sampled regions of the batch.

    Only the offsets of a region's own class learn, and only where it is not background.
    """
    class_ids = torch.cat([target.class_ids for target in targets])
    wanted = torch.cat([target.deltas for target in targets])
    count = max(1, len(class_ids))
    classes = F.cross_entropy(logits.float(), class_ids, reduction="sum")
    foreground = torch.nonzero(class_ids > 0).squeeze(1)
    own = offsets[foreground, class_ids[foreground]].float()
    boxes = F.smooth_l1_loss(own, wanted[foreground], beta=beta, reduction="sum")
    return classes / count, boxes / count


def joint_losses(model: FasterRCNN, batch: ImageBatch, truths: Sequence[Truth], generator: torch.Generator) -> Losses:
    """One forward pass of approximate joint training (P 3.2): proposals are fixed inputs to the detector's loss.

    batch: pictures on their canvas; truths: one of each picture, canvas pixels; generator: of the two samplers. The
    model must be in training mode.
    """
    config: DetectorConfig = model.config
    dense = model.dense(batch.pixels)
    shapes = tuple((int(level.shape[2]), int(level.shape[3])) for level in dense.maps)
    anchors, _ = model.rpn.grid(batch.canvas, shapes, batch.pixels.device)
    anchor = [anchor_targets(anchors, truth, config.train, generator) for truth in truths]
    objectness, rpn_box = rpn_losses(dense.logits, dense.deltas, anchor, config.train.rpn_beta)

    proposals = model.rpn.propose(model.candidates(dense, batch))
    weights = config.roi_head.box_weights
    regions = [
        region_targets(proposal.boxes, truth, config.train, weights, generator)
        for proposal, truth in zip(proposals, truths, strict=True)
    ]
    logits, offsets = model.roi_heads(dense.maps, stack_regions([region.boxes for region in regions]))
    classes, roi_box = roi_losses(logits, offsets, regions, config.train.roi_beta)
    return Losses(objectness, rpn_box, classes, roi_box)
