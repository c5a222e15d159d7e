"""Proposals and traces, for those images of a batch whose options request them; most request neither."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.config import DetectorConfig
from model.explain.trace import TraceTensors, build_trace, collect_tensors, to_image_frame
from model.faster_rcnn import RPNOutput
from model.rpn import Candidates
from model.structures import Detections, ImageBatch, Proposals, ResolvedOptions


@dataclass(frozen=True)
class RequestedOutputs:
    """Proposals and trace tensors by image number, canvas pixels.

    maps: (Hl, Wl) by level. proposals, traces: on the device after ``collect_requested``, on the host after
    ``on_host``.
    """

    maps: tuple[tuple[int, int], ...]
    proposals: dict[int, Proposals]
    traces: dict[int, TraceTensors]

    @property
    def tensors(self) -> list[Tensor]:
        """Return all tensors in one list, for one copy to the host."""
        proposals = [tensor for each in self.proposals.values() for tensor in each.tensors]
        return proposals + [tensor for trace in self.traces.values() for tensor in trace]

    def on_host(self, tensors: Iterable[Tensor]) -> RequestedOutputs:
        """Return these outputs with ``tensors``, which are copies of ``self.tensors`` in the same order."""
        copies = iter(tensors)
        return replace(
            self,
            proposals={
                i: Proposals.from_tensors(tuple(next(copies) for _ in each.tensors))
                for i, each in self.proposals.items()
            },
            traces={i: TraceTensors(*(next(copies) for _ in trace)) for i, trace in self.traces.items()},
        )

    def add_to(
        self,
        detections: Detections,
        image: int,
        before_limit: Detections,
        batch: ImageBatch,
        config: DetectorConfig,
        classes: tuple[str, ...],
        options: ResolvedOptions,
    ) -> Detections:
        """Return the detections of image number ``image`` with its proposals and trace, in the image's pixels.

        before_limit: the same detections before the limit of detections, which a trace records. self: on the host.
        """
        if image in self.proposals:
            proposals = to_image_frame(self.proposals[image], batch, image, config.anchors, self.maps)
            detections = replace(detections, proposals=proposals)
        if image in self.traces:
            pairs = torch.stack((before_limit.proposal_indices, before_limit.class_ids), dim=1)
            trace = build_trace(config, batch, image, self.maps, self.traces[image], pairs, classes, options)
            detections = replace(detections, trace=trace)
        return detections


def collect_requested(
    output: RPNOutput,
    candidates: Candidates,
    after_nms: Sequence[Tensor],
    final_rows: Sequence[Tensor],
    logits: Sequence[Tensor],
    offsets: Sequence[Tensor],
    options: Sequence[ResolvedOptions],
) -> RequestedOutputs:
    """Collect the proposals and trace tensors that each image's options request, on the device.

    For each image: the candidates after_nms int64 [K] and final_rows int64 [R], logits [R, classes] and offsets
    [R, classes, 4] of its R proposals.
    """
    proposals: dict[int, Proposals] = {}
    traces: dict[int, TraceTensors] = {}
    for image, image_options in enumerate(options):
        if image_options.proposals:
            proposals[image] = candidates.proposals(image, final_rows[image][: image_options.proposals])
        if image_options.trace:
            traces[image] = collect_tensors(image, output, candidates, after_nms[image], logits[image], offsets[image])
    return RequestedOutputs(output.shapes, proposals, traces)
