"""One batch through the detector: from a canvas of pixels to every picture's detections.

Nothing is done for one picture after the other on the device. The host waits for a GPU at four points, whatever the
size of the batch: for the number of proposals, for the number of candidates, for the detections, and for all else that
goes into the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from model import boxes as box_ops
from model.explain.trace import TraceTensors, gather, in_picture, record
from model.faster_rcnn import Dense, FasterRCNN, split_rows
from model.roi_head import Found, stack_regions
from model.runtime.stage_timer import StageTimer
from model.structures import Detections, DetectOptions, ImageBatch, Proposals
from model.transfer import download, upload

T = TypeVar("T")


def run(
    model: FasterRCNN,
    dtype: torch.dtype,
    batch: ImageBatch,
    options: Sequence[DetectOptions],
    classes: tuple[str, ...],
    timer: StageTimer,
) -> list[Detections | None]:
    """Detect in each picture of ``batch``; the detections are on the CPU, without timings.

    None for a picture for which a map, a logit or an offset of the network was not finite.
    dtype: what the network takes. options: one a picture, without a None but in ``class_ids`` and ``regions``.
    classes: names by class id. ``timer`` is told of the stages backbone, rpn, roi_head and postprocess.
    """
    device = batch.pixels.device
    asking = [i for i, wanted in enumerate(options) if wanted.regions is None]
    maps, dense = run_dense(model, batch.pixels.to(dtype), asking)
    finite = _finite_images(maps)
    timer.mark("backbone")
    boxes_in = [_on_canvas(wanted.regions, batch, i) for i, wanted in enumerate(options)]
    candidates, asked, survivors = None, batch, []
    if dense is not None:
        asked = batch if len(asking) == len(batch) else batch[asking]
        candidates = model.candidates(dense, asked)
        survivors = model.rpn.survivors(candidates)
        for row, index in enumerate(model.rpn.cut(survivors)):
            boxes_in[asking[row]] = candidates.boxes[row, index]
        answered = _finite_images((dense.logits, dense.deltas))
        if asked is not batch:
            answered = torch.ones_like(finite).scatter_(0, upload(asking, torch.int64, device), answered)
        finite = finite & answered
    timer.mark("rpn")
    regions = stack_regions(boxes_in)
    logits, offsets = model.roi_heads(maps, regions)
    timer.mark("roi_head")
    found = model.roi_heads.find(
        logits,
        offsets,
        regions,
        batch.device_sizes,
        upload([_known(wanted.score_threshold) for wanted in options], torch.float32, device),
        [_known(wanted.nms_threshold) for wanted in options],
        _class_masks(options, len(classes), device),
    )
    per_region = logits.sum(dim=1, dtype=torch.float32) + offsets.sum(dim=(1, 2), dtype=torch.float32)
    broken = torch.zeros(len(batch), device=device)
    broken.index_add_(0, regions[:, 0].long(), per_region * 0)  # NaN where it is not finite
    finite &= broken == 0

    counts = [len(boxes) for boxes in boxes_in]
    proposals: dict[int, Proposals] = {}
    traces: dict[int, TraceTensors] = {}
    if dense is not None and candidates is not None:
        for row, i in enumerate(asking):
            if options[i].proposals:
                proposals[i] = candidates.of_picture(row, survivors[row][: min(options[i].proposals, counts[i])])
            if options[i].trace:
                rows = split_rows(logits, offsets, counts)[i]
                traces[i] = gather(row, dense, candidates, survivors[row], rows)
    sound, proposals, traces = _to_host(finite, proposals, traces)

    results: list[Detections | None] = []
    for i, every in enumerate(_part(found, batch, counts, classes)):
        wanted = options[i]
        result = _first(every, _known(wanted.max_detections))
        if dense is not None and i in proposals:
            there = in_picture(proposals[i], batch, i, model.rpn.anchors, dense.shapes)
            result = replace(result, proposals=there)
        if dense is not None and i in traces:
            # A trace also wants what the limit cuts.
            pairs = torch.stack((every.proposal_indices, every.class_ids), dim=1)
            trace = record(model.config, batch, i, dense.shapes, traces[i], pairs, classes, wanted)
            result = replace(result, trace=trace)
        results.append(result if sound[i] else None)
    timer.mark("postprocess")
    return results


def run_dense(model: FasterRCNN, pixels: Tensor, asking: Sequence[int]) -> tuple[list[Tensor], Dense | None]:
    """Run the backbone on pixels [B, 3, H, W], and the RPN's head on the rows ``asking`` alone.

    Returns the maps of all rows, and what the head says of those that ask, in their order; None where none does.
    """
    if len(asking) == len(pixels):
        dense = model.dense(pixels)
        return dense.maps, dense
    maps: list[Tensor] = model.backbone(pixels)
    if not asking:
        return maps, None
    rows = upload(asking, torch.int64, pixels.device)
    theirs = [level[rows] for level in maps]
    return maps, Dense(theirs, *model.rpn.head(theirs))


def _finite_images(tensors: Sequence[Tensor]) -> Tensor:
    """Say for tensors [B, ...] whether all values of a row are finite, bool [B].

    A sum in float32 is finite where none of its parts is infinite or no number.
    """
    sums = [tensor.sum(dim=tuple(range(1, tensor.dim())), dtype=torch.float32) for tensor in tensors]
    return (torch.stack(sums).sum(dim=0) * 0) == 0


def _to_host(
    finite: Tensor, proposals: dict[int, Proposals], traces: dict[int, TraceTensors]
) -> tuple[list[bool], dict[int, Proposals], dict[int, TraceTensors]]:
    """Copy all of it to the CPU, with one wait for a GPU."""
    tensors = [finite]
    for those in proposals.values():
        tensors += those.tensors
    for trace in traces.values():
        tensors += trace
    flags, *rest = download(*tensors)
    parts = iter(rest)
    return (
        flags.tolist(),
        {i: Proposals.of(tuple(next(parts) for _ in those.tensors)) for i, those in proposals.items()},
        {i: TraceTensors(*(next(parts) for _ in trace)) for i, trace in traces.items()},
    )


def _part(found: Found, batch: ImageBatch, counts: Sequence[int], classes: tuple[str, ...]) -> list[Detections]:
    """Divide what was found by image, and carry its boxes into the image's pixels; counts: regions of each image."""
    sizes, originals = batch.sizes[found.pictures], batch.original_sizes[found.pictures]
    boxes = box_ops.rescale(found.boxes, sizes, originals)
    results, start = [], 0
    for picture, count in enumerate(counts):
        members = found.pictures == picture
        class_ids = found.class_ids[members]
        results.append(
            Detections(
                boxes=boxes[members],
                scores=found.scores[members],
                class_ids=class_ids,
                labels=tuple(classes[j] for j in class_ids.tolist()),
                proposal_indices=found.rows[members] - start,
                batch_size=len(counts),
            )
        )
        start += count
    return results


def _first(found: Detections, limit: int) -> Detections:
    if len(found) <= limit:
        return found
    return replace(
        found,
        boxes=found.boxes[:limit],
        scores=found.scores[:limit],
        class_ids=found.class_ids[:limit],
        labels=found.labels[:limit],
        proposal_indices=found.proposal_indices[:limit],
    )


def _on_canvas(regions: tuple[tuple[float, ...], ...] | None, batch: ImageBatch, picture: int) -> Tensor:
    """Return a caller's regions as float32 [R, 4] on the canvas, on the device, cut to the image; none for None."""
    boxes = torch.tensor(regions or (), dtype=torch.float32).reshape(-1, 4)
    if regions:
        size, original = batch.sizes[picture], batch.original_sizes[picture]
        boxes = box_ops.clip(box_ops.rescale(boxes, original, size), float(size[0]), float(size[1]))
    return upload(boxes, torch.float32, batch.pixels.device)


def _class_masks(options: Sequence[DetectOptions], classes: int, device: torch.device) -> Tensor | None:
    """bool [B, classes], what each picture's caller wants; None where all want all."""
    if all(wanted.class_ids is None for wanted in options):
        return None
    masks = torch.zeros(len(options), classes, dtype=torch.bool)
    for mask, wanted in zip(masks, options, strict=True):
        mask[slice(None) if wanted.class_ids is None else list(wanted.class_ids)] = True
    return upload(masks, torch.bool, device)


def _known(value: T | None) -> T:
    """A value that the facade has filled in."""
    assert value is not None
    return value
