"""One batch through the detector: from a canvas of pixels to every picture's detections.

Up to NMS nothing loops over pictures and nothing waits for the device; after it, everything that was found comes to the
CPU in one copy and is parted by picture there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from model import boxes as box_ops
from model.faster_rcnn import Dense, FasterRCNN, split_rows
from model.roi_head import Found, stack_regions
from model.runtime.clock import Clock
from model.structures import Detections, DetectOptions, ImageBatch
from model.trace import in_picture, record

T = TypeVar("T")


def run(
    model: FasterRCNN,
    dtype: torch.dtype,
    batch: ImageBatch,
    options: Sequence[DetectOptions],
    classes: tuple[str, ...],
    clock: Clock,
) -> list[Detections]:
    """The detections of each picture of ``batch``, on the CPU, without timings.

    dtype: what the network takes. options: one a picture, without a None but in ``class_ids`` and ``regions``.
    classes: names by class id. ``clock`` is told of the stages backbone, rpn, roi_head and postprocess.
    """
    asking = [i for i, wanted in enumerate(options) if wanted.regions is None]
    maps, dense = run_dense(model, batch.pixels.to(dtype), asking)
    clock.lap("backbone")
    boxes_in = [_on_canvas(wanted.regions, batch, i) for i, wanted in enumerate(options)]
    candidates, kept, asked = None, {}, batch
    if dense is not None:
        asked = batch if len(asking) == len(batch) else batch[asking]
        candidates = model.candidates(dense, asked)
        for row, index in enumerate(model.rpn.keep(candidates)):
            kept[asking[row]] = index
            boxes_in[asking[row]] = candidates.boxes[row, index]
    clock.lap("rpn")
    regions = stack_regions(boxes_in)
    logits, offsets = model.roi_heads(maps, regions)
    clock.lap("roi_head")
    found = model.roi_heads.find(
        logits,
        offsets,
        regions,
        batch.sizes,
        torch.tensor([_known(wanted.score_threshold) for wanted in options], device=regions.device),
        [_known(wanted.nms_threshold) for wanted in options],
        _class_masks(options, len(classes), regions.device),
    )
    counts = [len(boxes) for boxes in boxes_in]
    results = _part(found, batch, counts, classes)
    for i, wanted in enumerate(options):
        every = results[i]
        if len(every) > (limit := _known(wanted.max_detections)):
            results[i] = _first(every, limit)
        if dense is None or candidates is None or wanted.regions is not None:
            continue
        row = asking.index(i)
        if wanted.proposals:
            proposals = candidates.of_picture(row, kept[i][: wanted.proposals])
            proposals = in_picture(proposals, asked, row, model.rpn.anchors, dense.shapes)
            results[i] = replace(results[i], proposals=proposals)
        if wanted.trace:
            # A trace also wants what the limit cuts.
            pairs = torch.stack((every.proposal_indices, every.class_ids), dim=1)
            rows = split_rows(logits, offsets, counts)[i]
            trace = record(model, asked, row, dense, candidates, rows, pairs, classes, wanted)
            results[i] = replace(results[i], trace=trace)
    clock.lap("postprocess")
    return results


def run_dense(model: FasterRCNN, pixels: Tensor, asking: Sequence[int]) -> tuple[list[Tensor], Dense | None]:
    """Run the backbone on every picture, and the RPN's head on the rows ``asking`` alone: None where no row asks."""
    if len(asking) == len(pixels):
        dense = model.dense(pixels)
        return dense.maps, dense
    maps = model.backbone(pixels)
    if not asking:
        return maps, None
    theirs = [level[list(asking)] for level in maps]
    return maps, Dense(theirs, *model.rpn.head(theirs))


def _part(found: Found, batch: ImageBatch, counts: Sequence[int], classes: tuple[str, ...]) -> list[Detections]:
    """What was found, by picture and in its pixels; ``counts``: regions of each picture."""
    boxes = box_ops.rescale(found.boxes, batch.sizes[found.pictures], batch.original_sizes[found.pictures])
    numbers = (found.scores, found.class_ids, found.rows, found.pictures)
    # One copy from the device: whole numbers this small are exact in float32.
    table = torch.cat((boxes, torch.stack([part.float() for part in numbers], dim=1)), dim=1).cpu()
    results, start = [], 0
    for picture, count in enumerate(counts):
        mine = table if len(counts) == 1 else table[table[:, 7] == picture]
        class_ids = mine[:, 5].long()
        results.append(
            Detections(
                boxes=mine[:, :4].contiguous(),
                scores=mine[:, 4].contiguous(),
                class_ids=class_ids,
                labels=tuple(classes[j] for j in class_ids.tolist()),
                proposal_indices=mine[:, 6].long() - start,
                batch_size=len(counts),
            )
        )
        start += count
    return results


def _first(found: Detections, limit: int) -> Detections:
    return replace(
        found,
        boxes=found.boxes[:limit],
        scores=found.scores[:limit],
        class_ids=found.class_ids[:limit],
        labels=found.labels[:limit],
        proposal_indices=found.proposal_indices[:limit],
    )


def _on_canvas(regions: tuple[tuple[float, ...], ...] | None, batch: ImageBatch, picture: int) -> Tensor:
    """A caller's regions as float32 [R, 4] on the canvas, cut to the picture; none for None."""
    boxes = torch.tensor(regions or (), dtype=torch.float32, device=batch.sizes.device).reshape(-1, 4)
    if not regions:
        return boxes
    size, original = batch.sizes[picture], batch.original_sizes[picture]
    return box_ops.clip(box_ops.rescale(boxes, original, size), float(size[0]), float(size[1]))


def _class_masks(options: Sequence[DetectOptions], classes: int, device: torch.device) -> Tensor | None:
    """bool [B, classes], what each picture's caller wants; None where all want all."""
    if all(wanted.class_ids is None for wanted in options):
        return None
    masks = torch.zeros(len(options), classes, dtype=torch.bool)
    for mask, wanted in zip(masks, options, strict=True):
        mask[slice(None) if wanted.class_ids is None else list(wanted.class_ids)] = True
    return masks.to(device)


def _known(value: T | None) -> T:
    """A value that the facade has filled in."""
    assert value is not None
    return value
