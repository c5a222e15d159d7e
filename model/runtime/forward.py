"""The forward pass: a batch of images on one canvas to each image's detections.

    stage           does                                                     waits of the host for a GPU
    ``backbone``    backbone, feature pyramid, the RPN's head                none
    ``rpn``         the best anchors of each level, decoded; NMS; proposals  one, for how many boxes NMS leaves
    ``roi_head``    RoIAlign, box head, class scores and offsets             none
    ``postprocess`` decoding, class NMS, requested outputs, to the host      three: for the number of candidates,
                                                                             the detections, all else

Everything that is served, evaluated or compared with torchvision goes through ``ForwardPass``. Training runs the same
layers with other limits, regions and losses (``model.training.losses``). The waits do not grow with the batch, unless
NMS needs more iterations than usual (``model.nms``).

On its way an image is part of an ``ImageBatch``, ``RPNOutput``, ``ImageProposals``, ``HeadOutput``, ``BatchDetections``
and, at last, ``Detections`` of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from model import boxes as box_ops
from model.explain.requested import RequestedOutputs, collect_requested
from model.faster_rcnn import FasterRCNN, RPNOutput
from model.roi_head import BatchDetections, stack_regions
from model.rpn import Candidates
from model.runtime.stage_timer import StageTimer
from model.structures import Box, Detections, ImageBatch, ResolvedOptions
from model.transfer import download, upload


class ImageProposals(NamedTuple):
    """What the RPN selects in a batch.

    candidates: the best anchors of each level, decoded. after_nms: for each image the candidates that NMS leaves, int64
    [K], by falling objectness. final_rows: the first of them, int64 [R], which are the image's proposals.
    """

    candidates: Candidates
    after_nms: list[Tensor]
    final_rows: list[Tensor]

    @property
    def boxes(self) -> list[Tensor]:
        """Return each image's proposals, float32 [R, 4], canvas pixels."""
        return [self.candidates.boxes[image, rows] for image, rows in enumerate(self.final_rows)]


class HeadOutput(NamedTuple):
    """The RoI head's output for a batch's regions.

    regions: float32 [R, 5] of (image, box), canvas pixels, in the images' order. counts: regions of each image.
    logits: [R, classes]. offsets: [R, classes, 4].
    """

    regions: Tensor
    counts: tuple[int, ...]
    logits: Tensor
    offsets: Tensor


class ForwardPass:
    """The forward pass of a ``FasterRCNN``. Each stage is a method that can be replaced."""

    def __init__(self, model: FasterRCNN, dtype: torch.dtype, classes: tuple[str, ...]) -> None:
        """Keep ``model``. dtype: of the network's input. classes: names by class id, background first."""
        self.model = model
        self.dtype = dtype
        self.classes = classes

    def detect(
        self, batch: ImageBatch, options: Sequence[ResolvedOptions], timer: StageTimer
    ) -> list[Detections | None]:
        """Detect objects in each image of ``batch``, with options for each.

        Returns detections in each image's own pixels, on the CPU and without timings; None for an image for which a
        feature map, a logit or an offset was not finite. ``timer`` marks the end of each stage.
        """
        output = self.run_convolutions(batch)
        finite = find_finite_images((*output.maps, output.logits, output.deltas))
        timer.mark("backbone")
        proposals = self.propose(output, batch)
        boxes = proposals.boxes
        timer.mark("rpn")
        head = self.run_roi_head(output.maps, boxes)
        timer.mark("roi_head")
        detections = self.postprocess(head, batch, options)
        logits, offsets = head.logits.split(head.counts), head.offsets.split(head.counts)
        requested = collect_requested(
            output, proposals.candidates, proposals.after_nms, proposals.final_rows, logits, offsets, options
        )
        results = self._to_images(head, detections, finite, requested, batch, options)
        timer.mark("postprocess")
        return results

    def classify_regions(
        self,
        batch: ImageBatch,
        regions: Sequence[Sequence[Box]],
        options: Sequence[ResolvedOptions],
        timer: StageTimer,
    ) -> list[Detections | None]:
        """Run the Fast R-CNN detector alone, on each image's ``regions`` in its own pixels; the RPN does not run.

        Returns as ``detect``. What lies outside an image is clipped; a region with no area left gives no detection.
        """
        maps: list[Tensor] = self.model.backbone(batch.pixels.to(self.dtype))
        finite = find_finite_images(maps)
        timer.mark("backbone")
        head = self.run_roi_head(maps, [_to_canvas(boxes, batch, i) for i, boxes in enumerate(regions)])
        timer.mark("roi_head")
        detections = self.postprocess(head, batch, options)
        results = self._to_images(head, detections, finite, RequestedOutputs((), {}, {}), batch, options)
        timer.mark("postprocess")
        return results

    def run_convolutions(self, batch: ImageBatch) -> RPNOutput:
        """Run the backbone, the feature pyramid and the RPN's head."""
        return self.model.run_convolutions(batch.pixels.to(self.dtype))

    def propose(self, output: RPNOutput, batch: ImageBatch) -> ImageProposals:
        """Select each image's proposals from the RPN's output: top-k, decoding, NMS, the final limit."""
        candidates = self.model.select_candidates(output, batch)
        after_nms = self.model.rpn.nms_per_level(candidates)
        return ImageProposals(candidates, after_nms, self.model.rpn.limit_proposals(after_nms))

    def run_roi_head(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> HeadOutput:
        """Classify each image's boxes, float32 [Ri, 4] in canvas pixels, on the feature maps."""
        regions = stack_regions(boxes)
        return HeadOutput(regions, tuple(len(rows) for rows in boxes), *self.model.roi_heads(maps, regions))

    def postprocess(self, head: HeadOutput, batch: ImageBatch, options: Sequence[ResolvedOptions]) -> BatchDetections:
        """Decode boxes and run class NMS; return all images' detections, on the CPU, in canvas pixels, not limited."""
        device = head.regions.device
        return self.model.roi_heads.postprocess(
            head.logits,
            head.offsets,
            head.regions,
            batch.device_sizes,
            upload([each.score_threshold for each in options], torch.float32, device),
            [each.nms_threshold for each in options],
            _class_masks(options, len(self.classes), device),
        )

    def _to_images(
        self,
        head: HeadOutput,
        detections: BatchDetections,
        finite: Tensor,
        requested: RequestedOutputs,
        batch: ImageBatch,
        options: Sequence[ResolvedOptions],
    ) -> list[Detections | None]:
        """Copy the rest to the host, divide by image, limit, and rescale boxes to each image's pixels."""
        finite = finite & _find_finite_heads(head)
        flags, *tensors = download(finite, *requested.tensors)
        requested = requested.on_host(tensors)
        results: list[Detections | None] = []
        per_image = split_by_image(detections, batch, head.counts, self.classes)
        for image, (before_limit, image_options) in enumerate(zip(per_image, options, strict=True)):
            result = _limit(before_limit, image_options.max_detections)
            result = requested.add_to(
                result, image, before_limit, batch, self.model.config, self.classes, image_options
            )
            results.append(result if flags[image] else None)
        return results


def find_finite_images(tensors: Sequence[Tensor]) -> Tensor:
    """Return bool [B]: whether all values of an image are finite in all ``tensors``, each [B, ...].

    A sum in float32 is finite only where none of its terms is infinite or NaN.
    """
    sums = [tensor.sum(dim=tuple(range(1, tensor.dim())), dtype=torch.float32) for tensor in tensors]
    return (torch.stack(sums).sum(dim=0) * 0) == 0


def _find_finite_heads(head: HeadOutput) -> Tensor:
    """Return bool [B]: whether the RoI head's logits and offsets are finite in all regions of an image."""
    sums = head.logits.sum(dim=1, dtype=torch.float32) + head.offsets.sum(dim=(1, 2), dtype=torch.float32)
    per_image = torch.zeros(len(head.counts), device=sums.device)
    per_image.index_add_(0, head.regions[:, 0].long(), sums * 0)  # NaN where a sum is not finite
    return per_image == 0


def split_by_image(
    detections: BatchDetections, batch: ImageBatch, counts: Sequence[int], classes: tuple[str, ...]
) -> list[Detections]:
    """Divide a batch's detections by image, boxes in each image's own pixels. counts: regions of each image."""
    sizes, originals = batch.sizes[detections.images], batch.original_sizes[detections.images]
    boxes = box_ops.rescale(detections.boxes, sizes, originals)
    per_image, first_region = [], 0
    for image, count in enumerate(counts):
        rows = detections.images == image
        class_ids = detections.class_ids[rows]
        per_image.append(
            Detections(
                boxes=boxes[rows],
                scores=detections.scores[rows],
                class_ids=class_ids,
                labels=tuple(classes[class_id] for class_id in class_ids.tolist()),
                proposal_indices=detections.region_rows[rows] - first_region,
                batch_size=len(counts),
            )
        )
        first_region += count
    return per_image


def _limit(detections: Detections, limit: int) -> Detections:
    """Keep the first ``limit`` detections."""
    if len(detections) <= limit:
        return detections
    return replace(
        detections,
        boxes=detections.boxes[:limit],
        scores=detections.scores[:limit],
        class_ids=detections.class_ids[:limit],
        labels=detections.labels[:limit],
        proposal_indices=detections.proposal_indices[:limit],
    )


def _to_canvas(regions: Sequence[Box], batch: ImageBatch, image: int) -> Tensor:
    """Return regions in an image's pixels as float32 [R, 4] in canvas pixels, on the device, clipped to the image."""
    boxes = torch.tensor(regions, dtype=torch.float32).reshape(-1, 4)
    if len(boxes):
        size, original = batch.sizes[image], batch.original_sizes[image]
        boxes = box_ops.clip(box_ops.rescale(boxes, original, size), float(size[0]), float(size[1]))
    return upload(boxes, torch.float32, batch.pixels.device)


def _class_masks(options: Sequence[ResolvedOptions], classes: int, device: torch.device) -> Tensor | None:
    """Return bool [B, classes], the classes to keep in each image; None where all are kept in all."""
    if all(each.class_ids is None for each in options):
        return None
    masks = torch.zeros(len(options), classes, dtype=torch.bool)
    for mask, each in zip(masks, options, strict=True):
        mask[slice(None) if each.class_ids is None else list(each.class_ids)] = True
    return upload(masks, torch.bool, device)
