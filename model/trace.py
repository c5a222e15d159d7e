"""What a forward pass leaves behind for one picture, carried into the picture's frame and to the CPU.

Nothing is computed twice but NMS of the traced picture's own candidates; the network has run already, for the whole
batch, and does not know who is being traced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model import anchors as anchor_grid
from model import boxes as box_ops
from model.config import AnchorConfig
from model.faster_rcnn import Dense, FasterRCNN
from model.rpn import Candidates
from model.structures import DetectOptions, ImageBatch, Proposals, Trace


def in_picture(
    proposals: Proposals, batch: ImageBatch, picture: int, config: AnchorConfig, maps: tuple[tuple[int, int], ...]
) -> Proposals:
    """Proposals of picture number ``picture`` from the canvas to its own pixels, on the CPU, with their places.

    maps: (Hl, Wl) by level.
    """
    size, original = batch.sizes[picture], batch.original_sizes[picture]
    indices = proposals.anchor_indices.cpu()
    return Proposals(
        boxes=box_ops.rescale(proposals.boxes, size, original).cpu(),
        objectness=proposals.objectness.cpu(),
        levels=proposals.levels.cpu(),
        anchor_indices=indices,
        anchors=box_ops.rescale(proposals.anchors, size, original).cpu(),
        deltas=proposals.deltas.cpu(),
        ranks=proposals.ranks.cpu(),
        places=anchor_grid.places(config, maps, indices),
    )


def record(
    model: FasterRCNN,
    batch: ImageBatch,
    picture: int,
    dense: Dense,
    candidates: Candidates,
    rows: tuple[Tensor, Tensor],
    found: Tensor,
    classes: tuple[str, ...],
    options: DetectOptions,
) -> Trace:
    """The trace of picture number ``picture`` of a batch that has been through ``model``.

    dense, candidates: of the whole batch. rows: the detector's logits [R, classes] and offsets [R, classes, 4] for this
    picture's proposals. found: int64 [F, 2], (proposal, class) of what class NMS left. options: without a None.
    """
    config = model.config
    size, original = batch.sizes[picture], batch.original_sizes[picture]
    survivors = model.rpn.survivors(candidates, picture)
    logits, offsets = rows
    boxes = candidates.boxes[picture, survivors[: len(logits)], None].expand(-1, logits.shape[1], 4)
    refined = box_ops.decode(offsets.float(), boxes, config.roi_head.box_weights)
    refined = box_ops.clip(refined, float(size[0]), float(size[1]))
    vertical, horizontal = (original.float() / size.float()).tolist()
    steps = anchor_grid.level_strides(config.anchors, batch.canvas, dense.shapes)
    everything = candidates.of_picture(picture, torch.arange(candidates.boxes.shape[1], device=survivors.device))
    return Trace(
        size=(int(original[0]), int(original[1])),
        maps=dense.shapes,
        steps=tuple((x * horizontal, y * vertical) for y, x in steps),
        anchors=box_ops.rescale(candidates.anchors, size, original).cpu(),
        objectness=dense.logits[picture].float().sigmoid().cpu(),
        deltas=dense.deltas[picture].float().cpu(),
        candidates=in_picture(everything, batch, picture, config.anchors, dense.shapes),
        valid=candidates.valid[picture].cpu(),
        survivors=survivors.cpu(),
        scores=logits.float().softmax(dim=1).cpu(),
        refined=box_ops.rescale(refined, size, original).cpu(),
        found=found.cpu(),
        classes=classes,
        config=config,
        options=options,
    )
