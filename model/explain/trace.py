"""Traces of a forward pass: what the network computed for one image, from the anchors to the detections.

A trace costs no second forward pass: it copies tensors that the network has computed for the whole batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from model import boxes as box_ops
from model.anchors import anchor_locations, level_strides
from model.config import AnchorConfig, DetectorConfig
from model.faster_rcnn import RPNOutput
from model.rpn import Candidates
from model.structures import ImageBatch, Proposals, ResolvedOptions, Trace


class TraceTensors(NamedTuple):
    """The tensors that a trace of one image is built from, on the device or on the host; boxes in canvas pixels.

    anchors float32 [N, 4]; logits [N] and deltas [N, 4] of the RPN; of its M candidates boxes float32 [M, 4], logits
    float32 [M], deltas float32 [M, 4], anchor_indices int64 [M], levels and ranks int64 [M], valid bool [M]; after_nms
    int64 [K], the candidates that the RPN's NMS left; the RoI head's class_logits [R, classes] and offsets
    [R, classes, 4].
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
    after_nms: Tensor
    class_logits: Tensor
    offsets: Tensor


def collect_tensors(
    image: int, output: RPNOutput, candidates: Candidates, after_nms: Tensor, class_logits: Tensor, offsets: Tensor
) -> TraceTensors:
    """Collect what belongs to image number ``image`` of the batch, without a copy to the host.

    after_nms: int64 [K]. class_logits [R, classes] and offsets [R, classes, 4]: the RoI head's, of this image.
    """
    return TraceTensors(
        candidates.anchors,
        output.logits[image],
        output.deltas[image],
        candidates.boxes[image],
        candidates.logits[image],
        candidates.deltas[image],
        candidates.anchor_indices[image],
        candidates.levels,
        candidates.ranks,
        candidates.valid[image],
        after_nms,
        class_logits,
        offsets,
    )


def build_trace(
    config: DetectorConfig,
    batch: ImageBatch,
    image: int,
    maps: tuple[tuple[int, int], ...],
    tensors: TraceTensors,
    detected_pairs: Tensor,
    classes: tuple[str, ...],
    options: ResolvedOptions,
) -> Trace:
    """Build the trace of image number ``image`` of ``batch``.

    maps: (Hl, Wl) by level. tensors: on the CPU. detected_pairs: int64 [F, 2], (proposal, class) after class NMS.
    """
    size, original = batch.sizes[image], batch.original_sizes[image]
    logits = tensors.class_logits.float()
    proposal_boxes = tensors.boxes[tensors.after_nms[: len(logits)], None].expand(-1, logits.shape[1], 4)
    refined = box_ops.decode(tensors.offsets.float(), proposal_boxes, config.roi_head.box_weights)
    refined = box_ops.clip(refined, float(size[0]), float(size[1]))
    vertical, horizontal = (original.float() / size.float()).tolist()
    steps = level_strides(config.anchors, batch.canvas, maps)
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
        candidates=to_image_frame(candidates, batch, image, config.anchors, maps),
        valid=tensors.valid,
        after_nms=tensors.after_nms,
        scores=logits.softmax(dim=1),
        refined=box_ops.rescale(refined, size, original),
        detected_pairs=detected_pairs,
        classes=classes,
        config=config,
        options=options,
    )


def to_image_frame(
    proposals: Proposals, batch: ImageBatch, image: int, config: AnchorConfig, maps: tuple[tuple[int, int], ...]
) -> Proposals:
    """Rescale proposals of image number ``image`` from canvas pixels to the image's own, and add their locations.

    proposals: on the CPU. maps: (Hl, Wl) by level.
    """
    size, original = batch.sizes[image], batch.original_sizes[image]
    return replace(
        proposals,
        boxes=box_ops.rescale(proposals.boxes, size, original),
        anchors=box_ops.rescale(proposals.anchors, size, original),
        locations=anchor_locations(config, maps, proposals.anchor_indices),
    )
