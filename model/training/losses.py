"""The four losses: RPN objectness and offsets (P eq. 1), detector classes and offsets (Fast R-CNN eq. 1).

Normalisation is PFR's code rather than the paper's text: both RPN terms are divided by the number of sampled anchors
(the paper's lambda of 10 over some 2,400 positions is about the same), both detector terms by the sampled regions.

Three objectives are made of them: ``joint_losses``, and for the 4-step training ``rpn_alone`` and ``DetectorAlone``.
Where several processes share a batch, ``total`` turns a count of one of them into the count of all. A loss is then the
process's share of the whole batch's, and the sum over processes of losses, or gradients, is exactly what one process
would have: not a mean of means, whose parts count differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from model.faster_rcnn import FasterRCNN, RPNOutput
from model.roi_head import stack_regions
from model.structures import ImageBatch, Proposals
from model.training.targets import AnchorTargets, RegionTargets, Truth, anchor_targets, region_targets

Total = Callable[[int], int]


def alone(count: int) -> int:
    """The total of one process's count where there is one process."""
    return count


class Losses(NamedTuple):
    """Four scalars, float32, of one batch."""

    objectness: Tensor
    rpn_box: Tensor
    classes: Tensor
    roi_box: Tensor

    def total(self) -> Tensor:
        """Their sum: joint training's loss (P 3.2)."""
        return self.objectness + self.rpn_box + self.classes + self.roi_box


class Objective(Protocol):
    """What a model is trained to do.

    Called with the model in training mode, pictures on their canvas, the truth of each (canvas pixels), a generator for
    each (of its samplers: a picture draws the same whoever its batch mates are), and ``total`` as above.
    """

    def __call__(
        self,
        model: FasterRCNN,
        batch: ImageBatch,
        truths: Sequence[Truth],
        generators: Sequence[torch.Generator],
        total: Total = alone,
    ) -> Losses: ...


def rpn_losses(
    logits: Tensor, deltas: Tensor, targets: Sequence[AnchorTargets], beta: float, total: Total = alone
) -> tuple[Tensor, Tensor]:
    """Objectness and offset loss of logits [B, N] and offsets [B, N, 4]: means over the batch's sampled anchors."""
    score_rows, score_targets, offset_rows = [], [], []
    for picture, target in enumerate(targets):
        sampled = torch.cat((target.positives, target.background))
        score_rows.append(logits[picture, sampled])
        labels = torch.zeros(len(sampled), device=logits.device)
        labels[: len(target.positives)] = 1
        score_targets.append(labels)
        offset_rows.append(deltas[picture, target.positives])
    count = max(1, total(sum(len(rows) for rows in score_rows)))
    objectness = F.binary_cross_entropy_with_logits(
        torch.cat(score_rows).float(), torch.cat(score_targets), reduction="sum"
    )
    wanted = torch.cat([target.deltas for target in targets])
    offsets = F.smooth_l1_loss(torch.cat(offset_rows).float(), wanted, beta=beta, reduction="sum")
    return objectness / count, offsets / count


def roi_losses(
    logits: Tensor, offsets: Tensor, targets: Sequence[RegionTargets], beta: float, total: Total = alone
) -> tuple[Tensor, Tensor]:
    """Class and offset loss of logits [S, classes] and offsets [S, classes, 4] of all sampled regions of the batch.

    Only the offsets of a region's own class learn, and only where it is not background.
    """
    class_ids = torch.cat([target.class_ids for target in targets])
    wanted = torch.cat([target.deltas for target in targets])
    count = max(1, total(len(class_ids)))
    classes = F.cross_entropy(logits.float(), class_ids, reduction="sum")
    foreground = torch.nonzero(class_ids > 0).squeeze(1)
    own = offsets[foreground, class_ids[foreground]].float()
    boxes = F.smooth_l1_loss(own, wanted[foreground], beta=beta, reduction="sum")
    return classes / count, boxes / count


def joint_losses(
    model: FasterRCNN,
    batch: ImageBatch,
    truths: Sequence[Truth],
    generators: Sequence[torch.Generator],
    total: Total = alone,
) -> Losses:
    """Approximate joint training (P 3.2): one pass, in which proposals are fixed inputs to the detector's loss."""
    dense = model.run_convolutions(batch.pixels)
    rpn = _rpn_part(model, dense, batch, truths, generators, total)
    proposals = model.rpn.select_proposals(model.select_candidates(dense, batch))
    return Losses(*rpn, *_detector_part(model, dense.maps, proposals, truths, generators, total))


def rpn_alone(
    model: FasterRCNN,
    batch: ImageBatch,
    truths: Sequence[Truth],
    generators: Sequence[torch.Generator],
    total: Total = alone,
) -> Losses:
    """The RPN's two losses; the detector's are 0."""
    dense = model.run_convolutions(batch.pixels)
    zero = batch.pixels.new_zeros(())
    return Losses(*_rpn_part(model, dense, batch, truths, generators, total), zero, zero)


class DetectorAlone:
    """The detector's two losses on another model's proposals, as Fast R-CNN is trained; the RPN's are 0.

    proposer: None takes the proposals of the model's own RPN, over the maps that its detector pools from.
    """

    def __init__(self, proposer: FasterRCNN | None = None) -> None:
        self.proposer = proposer

    def __call__(
        self,
        model: FasterRCNN,
        batch: ImageBatch,
        truths: Sequence[Truth],
        generators: Sequence[torch.Generator],
        total: Total = alone,
    ) -> Losses:
        proposer = self.proposer or model
        if proposer is model:
            dense = model.run_convolutions(batch.pixels)
            maps = dense.maps
        else:
            maps = model.backbone(batch.pixels)
            with torch.no_grad():
                dense = proposer.run_convolutions(batch.pixels)
        proposals = proposer.rpn.select_proposals(proposer.select_candidates(dense, batch))
        zero = batch.pixels.new_zeros(())
        return Losses(zero, zero, *_detector_part(model, maps, proposals, truths, generators, total))


def _rpn_part(
    model: FasterRCNN,
    dense: RPNOutput,
    batch: ImageBatch,
    truths: Sequence[Truth],
    generators: Sequence[torch.Generator],
    total: Total,
) -> tuple[Tensor, Tensor]:
    config = model.config.train
    anchors, _ = model.rpn.grid_anchors(batch.canvas, dense.shapes, batch.pixels.device)
    targets = [
        anchor_targets(anchors, truth, config, generator) for truth, generator in zip(truths, generators, strict=True)
    ]
    return rpn_losses(dense.logits, dense.deltas, targets, config.rpn_beta, total)


def _detector_part(
    model: FasterRCNN,
    maps: Sequence[Tensor],
    proposals: Sequence[Proposals],
    truths: Sequence[Truth],
    generators: Sequence[torch.Generator],
    total: Total,
) -> tuple[Tensor, Tensor]:
    config, weights = model.config.train, model.config.roi_head.box_weights
    targets = [
        region_targets(proposal.boxes, truth, config, weights, generator)
        for proposal, truth, generator in zip(proposals, truths, generators, strict=True)
    ]
    logits, offsets = model.roi_heads(maps, stack_regions([target.boxes for target in targets]))
    return roi_losses(logits, offsets, targets, config.roi_beta, total)
