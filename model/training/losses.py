"""The four losses: of the RPN's objectness and offsets, and of the detector's classes and offsets.

They are equation 1 of arXiv 1506.01497, and equation 1 of Fast R-CNN (arXiv 1504.08083).

Normalisation follows py-faster-rcnn's code rather than the paper's text: both RPN terms are divided by the number of
sampled anchors (the paper's lambda of 10 over some 2,400 positions is about the same), both detector terms by the
number of sampled regions.

Training minimises one of three objectives: ``joint_losses``, or in 4-step training ``rpn_only_losses`` and
``DetectorOnlyLosses``. Where several processes share a batch, ``total`` turns a count of one process into the count of
all. A loss is then the process's share of the whole batch's, and the sum of losses or gradients over processes is
exactly that of one process. A mean over processes would weigh samples differently where the counts differ.
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

# Sums a count over all processes.
Total = Callable[[int], int]


def single_process_total(count: int) -> int:
    """Return ``count``: the total where there is one process."""
    return count


class Losses(NamedTuple):
    """The four losses of one batch, float32 scalars."""

    objectness: Tensor
    rpn_box: Tensor
    classes: Tensor
    roi_box: Tensor

    def total(self) -> Tensor:
        """Return their sum, the loss of joint training."""
        return self.objectness + self.rpn_box + self.classes + self.roi_box


class Objective(Protocol):
    """The losses that training minimises.

    Called with the model in training mode, a batch of images, the ground truth of each (canvas pixels), a generator for
    the samplers of each (so that an image's samples do not depend on the others in the batch), and ``total`` as above.
    """

    def __call__(
        self,
        model: FasterRCNN,
        batch: ImageBatch,
        truths: Sequence[Truth],
        generators: Sequence[torch.Generator],
        total: Total = single_process_total,
    ) -> Losses: ...


def rpn_losses(
    logits: Tensor, deltas: Tensor, targets: Sequence[AnchorTargets], beta: float, total: Total = single_process_total
) -> tuple[Tensor, Tensor]:
    """Return objectness and offset loss of logits [B, N] and offsets [B, N, 4]: means over the sampled anchors."""
    score_rows, score_targets, offset_rows = [], [], []
    for image, target in enumerate(targets):
        sampled = torch.cat((target.positives, target.background))
        score_rows.append(logits[image, sampled])
        labels = torch.zeros(len(sampled), device=logits.device)
        labels[: len(target.positives)] = 1
        score_targets.append(labels)
        offset_rows.append(deltas[image, target.positives])
    count = max(1, total(sum(len(rows) for rows in score_rows)))
    objectness = F.binary_cross_entropy_with_logits(
        torch.cat(score_rows).float(), torch.cat(score_targets), reduction="sum"
    )
    target_deltas = torch.cat([target.deltas for target in targets])
    offsets = F.smooth_l1_loss(torch.cat(offset_rows).float(), target_deltas, beta=beta, reduction="sum")
    return objectness / count, offsets / count


def roi_losses(
    logits: Tensor, offsets: Tensor, targets: Sequence[RegionTargets], beta: float, total: Total = single_process_total
) -> tuple[Tensor, Tensor]:
    """Return class and offset loss of logits [S, classes] and offsets [S, classes, 4] of the batch's sampled regions.

    The offset loss is of a region's own class, and only where that is not background.
    """
    class_ids = torch.cat([target.class_ids for target in targets])
    target_deltas = torch.cat([target.deltas for target in targets])
    count = max(1, total(len(class_ids)))
    classes = F.cross_entropy(logits.float(), class_ids, reduction="sum")
    foreground = torch.nonzero(class_ids > 0).squeeze(1)
    own = offsets[foreground, class_ids[foreground]].float()
    boxes = F.smooth_l1_loss(own, target_deltas[foreground], beta=beta, reduction="sum")
    return classes / count, boxes / count


def joint_losses(
    model: FasterRCNN,
    batch: ImageBatch,
    truths: Sequence[Truth],
    generators: Sequence[torch.Generator],
    total: Total = single_process_total,
) -> Losses:
    """Return all four losses of one pass: approximate joint training (arXiv 1506.01497, section 3.2).

    Proposals are constants to the detector's losses.
    """
    output = model.run_convolutions(batch.pixels)
    rpn = _rpn_losses(model, output, batch, truths, generators, total)
    proposals = model.rpn.select_proposals(model.select_candidates(output, batch))
    return Losses(*rpn, *_detector_losses(model, output.maps, proposals, truths, generators, total))


def rpn_only_losses(
    model: FasterRCNN,
    batch: ImageBatch,
    truths: Sequence[Truth],
    generators: Sequence[torch.Generator],
    total: Total = single_process_total,
) -> Losses:
    """Return the RPN's two losses; the detector's are 0."""
    output = model.run_convolutions(batch.pixels)
    zero = batch.pixels.new_zeros(())
    return Losses(*_rpn_losses(model, output, batch, truths, generators, total), zero, zero)


class DetectorOnlyLosses:
    """The detector's two losses on proposals that stay constant, as Fast R-CNN is trained; the RPN's are 0.

    proposer: the model whose RPN proposes; None uses the RPN of the trained model, on the maps that its detector uses.
    """

    def __init__(self, proposer: FasterRCNN | None = None) -> None:
        self.proposer = proposer

    def __call__(
        self,
        model: FasterRCNN,
        batch: ImageBatch,
        truths: Sequence[Truth],
        generators: Sequence[torch.Generator],
        total: Total = single_process_total,
    ) -> Losses:
        proposer = self.proposer or model
        if proposer is model:
            output = model.run_convolutions(batch.pixels)
            maps = output.maps
        else:
            maps = model.backbone(batch.pixels)
            with torch.no_grad():
                output = proposer.run_convolutions(batch.pixels)
        proposals = proposer.rpn.select_proposals(proposer.select_candidates(output, batch))
        zero = batch.pixels.new_zeros(())
        return Losses(zero, zero, *_detector_losses(model, maps, proposals, truths, generators, total))


def _rpn_losses(
    model: FasterRCNN,
    output: RPNOutput,
    batch: ImageBatch,
    truths: Sequence[Truth],
    generators: Sequence[torch.Generator],
    total: Total,
) -> tuple[Tensor, Tensor]:
    """Sample anchors of each image and return the RPN's two losses on them."""
    config = model.config.sampling
    anchors, _ = model.rpn.grid_anchors(batch.canvas, output.shapes, batch.pixels.device)
    targets = [
        anchor_targets(anchors, truth, config, generator) for truth, generator in zip(truths, generators, strict=True)
    ]
    return rpn_losses(output.logits, output.deltas, targets, config.rpn_beta, total)


def _detector_losses(
    model: FasterRCNN,
    maps: Sequence[Tensor],
    proposals: Sequence[Proposals],
    truths: Sequence[Truth],
    generators: Sequence[torch.Generator],
    total: Total,
) -> tuple[Tensor, Tensor]:
    """Sample regions of each image and return the detector's two losses on them."""
    config, weights = model.config.sampling, model.config.roi_head.box_weights
    targets = [
        region_targets(proposal.boxes, truth, config, weights, generator)
        for proposal, truth, generator in zip(proposals, truths, generators, strict=True)
    ]
    logits, offsets = model.roi_heads(maps, stack_regions([target.boxes for target in targets]))
    return roi_losses(logits, offsets, targets, config.roi_beta, total)
