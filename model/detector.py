"""The facade of ``model/``: images in, detections out."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.anchors import level_strides
from model.checkpoint import (
    CheckpointError,
    QuantizationRanges,
    ResolvedCheckpoint,
    identify_preset,
    load_into,
    match_fc6_rank,
    normalise_keys,
    read_quantization_ranges,
    read_state,
    resolve,
)
from model.config import BACKGROUND_NAME, DetectorConfig
from model.explain.explain import explain
from model.explain.stages import STAGES, Explanation, Stage
from model.faster_rcnn import FasterRCNN
from model.presets import PRESETS, find_preset
from model.roi_align import map_shapes
from model.runtime.buckets import Buckets, Canvas, CanvasMode
from model.runtime.device import DeviceError, choose_device, choose_devices
from model.runtime.forward import ForwardPass
from model.runtime.optimize import optimize_for_inference
from model.runtime.precision import float32_products
from model.runtime.stage_timer import StageTimer
from model.structures import (
    Box,
    Detections,
    DetectOptions,
    DetectorInfo,
    ImageArray,
    NotFiniteError,
    Proposals,
    ResolvedOptions,
)
from model.transform import Transform, check_image

__all__ = [
    "STAGES",
    "CheckpointError",
    "DetectOptions",
    "Detections",
    "Detector",
    "DetectorInfo",
    "DeviceError",
    "Explanation",
    "NotFiniteError",
    "Proposals",
    "Stage",
    "choose_devices",
    "explain",
]

Regions = Tensor | npt.NDArray[np.floating] | Sequence[Sequence[float]]
_NOWHERE = Path("random")


class Detector:
    """A Faster R-CNN that is ready for inference.

    Not thread-safe: one thread owns it. Make one with ``from_checkpoint``.
    """

    def __init__(
        self,
        model: FasterRCNN,
        checkpoint: ResolvedCheckpoint,
        *,
        device: str = "auto",
        precision: str = "auto",
        canvas: CanvasMode = "buckets",
        ranges: QuantizationRanges | None = None,
    ) -> None:
        """Take over ``model``, which is in float32 on the CPU, and make it ready for inference.

        ranges: the lowest and the highest input of each layer by its name, for int8. The other arguments are those of
        ``from_checkpoint``. Raises ``ValueError`` for an argument out of range, and for a layer whose range is missing;
        ``DeviceError``.
        """
        if len(checkpoint.classes) != model.config.num_classes:
            raise ValueError(f"{len(checkpoint.classes)} class names for {model.config.num_classes} classes.")
        self.config: DetectorConfig = model.config
        self.checkpoint = checkpoint
        self.device = choose_device(device)
        self.buckets = Buckets(model.config.transform, canvas)
        self.transform = Transform(model.config.transform)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.model, self.report = optimize_for_inference(model, self.device, precision, canvas=canvas, ranges=ranges)
        self.precision, self.dtype = self.report.precision, self.report.dtype
        head = model.config.roi_head
        self.forward_pass = ForwardPass(self.model, self.dtype, checkpoint.classes)
        self.defaults = ResolvedOptions(
            score_threshold=head.score_threshold if checkpoint.score_threshold is None else checkpoint.score_threshold,
            nms_threshold=head.nms_threshold,
            max_detections=head.max_detections,
        )

    @classmethod
    def from_checkpoint(
        cls,
        source: str | os.PathLike[str],
        *,
        preset: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        canvas: CanvasMode = "buckets",
    ) -> Detector:
        """Load a checkpoint: a name of the manifest, a .safetensors or a .pth file.

        preset: needed only where it follows neither from the manifest, nor from the file, nor from its keys.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto``, ``fp32``, ``tf32``, ``bf16``, ``fp16``, or ``int8``, which also reads FILE.ranges.json.
        canvas: pad images to one of a few ``buckets``, or ``exact``, as torchvision does.

        Raises ``CheckpointError`` for a file that is missing, damaged or of another detector, ``DeviceError`` for a
        device that cannot be used, and ``ValueError`` for another argument out of range.
        """
        checkpoint = resolve(source)
        state = read_state(checkpoint)
        name = preset or checkpoint.preset or identify_preset(state)
        if name is None:
            presets = ", ".join(config.name for config in PRESETS)
            raise CheckpointError(
                f"Nothing says which detector {checkpoint.path} is for: give preset, one of {presets}."
            )
        config = match_fc6_rank(find_preset(name).with_classes(len(checkpoint.classes)), normalise_keys(state))
        with torch.device("meta"):
            model = FasterRCNN(config)
        model = model.to_empty(device="cpu")
        load_into(model, state)
        checkpoint = replace(checkpoint, preset=config.name)
        ranges = read_quantization_ranges(checkpoint) if precision == "int8" else None
        return cls(model, checkpoint, device=device, precision=precision, canvas=canvas, ranges=ranges)

    @classmethod
    def random(
        cls, preset: str, *, seed: int = 0, classes: Sequence[str] = (BACKGROUND_NAME, "thing"), **options: str
    ) -> Detector:
        """Make a detector with random weights, for tests and benchmarks: its detections mean nothing.

        options: ``device``, ``precision`` and ``canvas`` of ``from_checkpoint``. Raises ``CheckpointError`` for an
        unknown preset.
        """
        torch.manual_seed(seed)
        model = FasterRCNN(find_preset(preset).with_classes(len(classes)))
        checkpoint = ResolvedCheckpoint(name="random", path=_NOWHERE, preset=preset, classes=tuple(classes))
        return cls(model, checkpoint, **options)  # type: ignore[arg-type]

    @cached_property
    def info(self) -> DetectorInfo:
        """Describe this detector: its checkpoint, its options, and what was done to it for speed."""
        config = self.config
        canvas = self.buckets.canvases[-1] if self.buckets.canvases else (config.transform.max_size,) * 2
        levels = zip(config.anchors.sizes, self._strides(canvas), strict=True)
        return DetectorInfo(
            name=self.checkpoint.name,
            preset=config.name,
            classes=self.checkpoint.classes,
            precision=self.precision,
            device=str(self.device),
            canvases=self.buckets.canvases,
            anchors=tuple(
                {"stride": stride, "sizes": sizes, "ratios": config.anchors.ratios} for sizes, stride in levels
            ),
            parameters=self.parameters,
            sha256=self.checkpoint.sha256,
            metrics=self.checkpoint.metrics,
            score_threshold=self.defaults.score_threshold,
            nms_threshold=self.defaults.nms_threshold,
            max_detections=self.defaults.max_detections,
            max_proposals=config.rpn.post_nms,
            optimizations=self.report.optimizations,
        )

    def canvas_for(self, height: int, width: int) -> Canvas:
        """Return the canvas (height, width) for an image of this size; images of one canvas can share a batch."""
        return self.buckets.canvas_for(height, width)

    def warm_up(self) -> None:
        """Run once on every canvas (on one image's, where canvases are exact), so that no caller waits for it."""
        for height, width in self.buckets.canvases or (self.canvas_for(480, 640),):
            image = np.full((height, width, 3), 127, dtype=np.uint8)
            self._run_batch([image], [DetectOptions()], (height, width))

    def detect(
        self,
        images: Sequence[ImageArray],
        options: DetectOptions | Sequence[DetectOptions] | None = None,
        regions: Sequence[Regions | None] | None = None,
    ) -> list[Detections]:
        """Detect objects in images, uint8 RGB [H, W, 3] of any sizes; one ``Detections`` each, in order, on the CPU.

        options: one for all images, or one each. regions: for each image boxes [R, 4] in its pixels, a shorter way to
        write ``DetectOptions.regions``, or None. Images that share a canvas are one batch; those with regions are a
        batch of their own. Raises ``ValueError`` for an array that is no image and for an option out of range, before
        anything is computed; ``NotFiniteError``, which has the other images' detections, where values overflowed.
        """
        per_image = [options or DetectOptions()] * len(images) if not isinstance(options, Sequence) else list(options)
        if len(per_image) != len(images):
            raise ValueError(f"{len(per_image)} options for {len(images)} images: give one for all, or one each.")
        if regions is not None:
            if len(regions) != len(images):
                raise ValueError(f"Regions for {len(regions)} images, and there are {len(images)}: give None for some.")
            per_image = [
                each if boxes is None else replace(each, regions=_to_boxes(boxes))
                for each, boxes in zip(per_image, regions, strict=True)
            ]
        batches: dict[tuple[Canvas, bool], list[int]] = defaultdict(list)
        for index, (image, each) in enumerate(zip(images, per_image, strict=True)):
            self._check(each)
            check_image(image)
            canvas = self.canvas_for(*(each.full_size or image.shape[:2]))
            batches[canvas, each.regions is not None].append(index)
        results: list[Detections | None] = [None] * len(images)
        for (canvas, _), members in batches.items():
            detections = self._run_batch([images[i] for i in members], [per_image[i] for i in members], canvas)
            for index, result in zip(members, detections, strict=True):
                results[index] = result
        finite = [result for result in results if result is not None]
        if len(finite) < len(results):
            raise NotFiniteError(results, self.precision)
        return finite

    @torch.inference_mode()
    def _run_batch(
        self, images: Sequence[ImageArray], options: Sequence[DetectOptions], canvas: Canvas
    ) -> list[Detections | None]:
        """Run one batch on one canvas, all of its images with regions or all without.

        None for an image for which the network's values are not finite.
        """
        resolved = [self._resolve(each) for each in options]
        regions = [each.regions for each in options if each.regions is not None]
        with float32_products(self.precision, self.device):
            timer = StageTimer(self.device)
            batch = self.transform(images, canvas, self.device, [each.full_size for each in options])
            timer.mark("transform")
            if regions:
                results = self.forward_pass.classify_regions(batch, regions, resolved, timer)
            else:
                results = self.forward_pass.detect(batch, resolved, timer)
            seconds = timer.seconds()
        return [None if result is None else replace(result, timings=seconds) for result in results]

    def _resolve(self, options: DetectOptions) -> ResolvedOptions:
        """Return ``options`` with this detector's defaults in place of None."""
        overrides = {
            name: value
            for name in ("score_threshold", "nms_threshold", "max_detections")
            if (value := getattr(options, name)) is not None
        }
        return replace(
            self.defaults,
            class_ids=options.class_ids,
            proposals=options.proposals,
            trace=options.trace,
            **overrides,
        )

    def _check(self, options: DetectOptions) -> None:
        """Raise ``ValueError`` for an option out of range, or two that exclude each other."""
        for name in ("score_threshold", "nms_threshold"):
            value = getattr(options, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value}.")
        if options.max_detections is not None and options.max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, not {options.max_detections}.")
        if options.full_size is not None and min(options.full_size) < 1:
            raise ValueError(f"full_size must be at least 1 x 1, not {options.full_size}.")
        if options.proposals < 0:
            raise ValueError(f"proposals must be 0 or more, not {options.proposals}.")
        if options.trace and options.class_ids is not None:
            raise ValueError("A trace covers all classes: give no class_ids with it.")
        if options.regions is not None and (options.trace or options.proposals):
            raise ValueError("With regions the RPN does not run: there are no proposals and no trace to return.")
        for box in options.regions or ():
            if not (len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]):
                raise ValueError(f"A region must be x1, y1, x2, y2 with x1 < x2 and y1 < y2, not {box}.")
        for class_id in options.class_ids or ():
            if not 0 < class_id < len(self.checkpoint.classes):
                raise ValueError(f"There is no class {class_id}: ids run from 1 to {len(self.checkpoint.classes) - 1}.")

    def _strides(self, canvas: Canvas) -> tuple[int, ...]:
        """Return the vertical canvas pixels between cells, by level."""
        if self.config.anchors.strides is not None:
            return self.config.anchors.strides
        # torchvision computes a stride as canvas // map, which differs between canvases; these are the largest's.
        with torch.device("meta"):
            maps = FasterRCNN(self.config).backbone(torch.empty(1, 3, *canvas))
        strides = level_strides(self.config.anchors, canvas, map_shapes(maps))
        return tuple(vertical for vertical, _ in strides)


def _to_boxes(regions: Regions) -> tuple[Box, ...]:
    """Convert regions [R, 4] to tuples; raise ``ValueError`` for another shape."""
    rows = np.asarray(regions, dtype=np.float64)
    if rows.size and (rows.ndim != 2 or rows.shape[1] != 4):
        raise ValueError(f"Regions must have the shape [R, 4], not {list(rows.shape)}.")
    return tuple((row[0], row[1], row[2], row[3]) for row in rows.tolist())
