"""What a forward pass leaves behind for one picture, carried into the picture's frame and to the CPU.

Nothing is computed twice; the network has run already, for the whole batch, and does not know who is being traced.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from model import anchors as anchor_grid
from model import boxes as box_ops
from model.config import AnchorConfig, DetectorConfig
from model.faster_rcnn import Dense
from model.rpn import Candidates
from model.structures import DetectOptions, ImageBatch, Proposals, Trace


def in_picture(
    proposals: Proposals, batch: ImageBatch, picture: int, config: AnchorConfig, maps: tuple[tuple[int, int], ...]
) -> Proposals:
    """Carry proposals of image number ``picture`` from the canvas to its own pixels, with locations; on the CPU.

    maps: (Hl, Wl) by level.
    """
    size, original = batch.sizes[picture], batch.original_sizes[picture]
    return replace(
        proposals,
        boxes=box_ops.rescale(proposals.boxes, size, original),
        anchors=box_ops.rescale(proposals.anchors, size, original),
        locations=anchor_grid.anchor_locations(config, maps, proposals.anchor_indices),
    )


class TraceTensors(NamedTuple):
    """What a trace of one picture needs of the device, on either side of the copy; boxes in canvas pixels.

    anchors float32 [N, 4]; logits [N] and deltas [N, 4] of the RPN; of its M candidates boxes float32 [M, 4], logits
    float32 [M], deltas float32 [M, 4], anchor_indices int64 [M], levels and ranks int64 [M], valid bool [M]; survivors
    int64 [K]; the detector's class_logits [R, classes] and offsets [R, classes, 4].
    """

    anchors: Tensor
    logits: Tensor
    deltas: Tensor
    boxes: Tensor
    candidate_logits: Tensor
    candidate_deltas: Tensor
    anchor_indices: Tensor
    levels: Tensor
    ranks: Tensor
    valid: Tensor
    survivors: Tensor
    class_logits: Tensor
    offsets: Tensor


def gather(
    picture: int, dense: Dense, candidates: Candidates, survivors: Tensor, rows: tuple[Tensor, Tensor]
) -> TraceTensors:
    """Collect what belongs to image number ``picture``, on the device.

    survivors: int64 [K], the candidates that the RPN's NMS left. rows: the detector's logits [R, classes] and offsets
    [R, classes, 4] for it.
    """
    return TraceTensors(
        candidates.anchors,
        dense.logits[picture],
        dense.deltas[picture],
        candidates.boxes[picture],
        candidates.logits[picture],
        candidates.deltas[picture],
        candidates.anchor_indices[picture],
        candidates.levels,
        candidates.ranks,
        candidates.valid[picture],
        survivors,
        *rows,
    )


def record(
    config: DetectorConfig,
    batch: ImageBatch,
    picture: int,
    maps: tuple[tuple[int, int], ...],
    tensors: TraceTensors,
    found: Tensor,
    classes: tuple[str, ...],
    options: DetectOptions,
) -> Trace:
    """Make the trace of image number ``picture`` of a batch that has been through the model.

    maps: (Hl, Wl) by level. tensors: on the CPU. found: int64 [F, 2], (proposal, class) of what class NMS left.
    options: without a None.
    """
    size, original = batch.sizes[picture], batch.original_sizes[picture]
    logits = tensors.class_logits.float()
    boxes = tensors.boxes[tensors.survivors[: len(logits)], None].expand(-1, logits.shape[1], 4)
    refined = box_ops.decode(tensors.offsets.float(), boxes, config.roi_head.box_weights)
    refined = box_ops.clip(refined, float(size[0]), float(size[1]))
    vertical, horizontal = (original.float() / size.float()).tolist()
    steps = anchor_grid.level_strides(config.anchors, batch.canvas, maps)
    candidates = Proposals(
        boxes=tensors.boxes,
        objectness=tensors.candidate_logits.sigmoid(),
        levels=tensors.levels,
        anchor_indices=tensors.anchor_indices,
        anchors=tensors.anchors[tensors.anchor_indices],
        deltas=tensors.candidate_deltas,
        ranks=tensors.ranks,
    )
    return Trace(
        size=(int(original[0]), int(original[1])),
        maps=maps,
        steps=tuple((x * horizontal, y * vertical) for y, x in steps),
        anchors=box_ops.rescale(tensors.anchors, size, original),
        objectness=tensors.logits.float().sigmoid(),
        deltas=tensors.deltas.float(),
        candidates=in_picture(candidates, batch, picture, config.anchors, maps),
        valid=tensors.valid,
        survivors=tensors.survivors,
        scores=logits.softmax(dim=1),
        refined=box_ops.rescale(refined, size, original),
        found=found,
        classes=classes,
        config=config,
        options=options,
    )
