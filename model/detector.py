"""The facade: pictures in, detections out. All that the service knows of ``model/``, with ``structures``."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

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
from model.config import DetectorConfig
from model.explain.explain import explain
from model.explain.stages import STAGES, Explanation, Stage
from model.faster_rcnn import FasterRCNN
from model.presets import PRESETS, find_preset
from model.runtime.buckets import Canvas, Canvases, CanvasMode
from model.runtime.cpu.emulate_bf16 import round_weights_and_maps
from model.runtime.cpu.int8.quantize import quantize
from model.runtime.cpu.onednn_conv import can_pack, pack_convolutions
from model.runtime.cpu.winograd import use_winograd
from model.runtime.device import DeviceError, choose_device, choose_devices
from model.runtime.flatten_channels_last import flatten_channels_last
from model.runtime.fold_batchnorm import fold_norms
from model.runtime.forward import run
from model.runtime.malloc import keep_freed_memory, keep_primitives
from model.runtime.precision import (
    PRECISIONS,
    choose_precision,
    float32_products,
    measure_drift,
    multiplies_bf16,
    probe_image,
    random_regions,
)
from model.runtime.stage_timer import Clock
from model.structures import Detections, DetectOptions, DetectorInfo, NotFiniteError, Proposals
from model.transform import Image, Transform, check_image

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

T = TypeVar("T")
Regions = Tensor | npt.NDArray[np.floating] | Sequence[Sequence[float]]
_NOWHERE = Path("random")


class Detector:
    """A Faster R-CNN that is ready to answer.

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
        """As ``from_checkpoint``, which makes what is needed; ``model`` is changed, and then is this detector's.

        ranges: lowest and highest value of each layer's input, by its name, for int8.
        Raises ``ValueError`` for an argument out of range, and for a layer whose range is missing; ``DeviceError``.
        """
        if len(checkpoint.classes) != model.config.num_classes:
            raise ValueError(f"{len(checkpoint.classes)} class names for {model.config.num_classes} classes.")
        keep_freed_memory()
        keep_primitives()
        self.config: DetectorConfig = model.config
        self.checkpoint = checkpoint
        self.device = choose_device(device)
        self.canvases = Canvases(model.config.transform, canvas)
        self.transform = Transform(model.config.transform)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        # Folded before it is cast, so that each weight is rounded once.
        fold_norms(model.eval().requires_grad_(False))
        flatten_channels_last(model.roi_heads.box_head, model.config.roi_head.resolution)
        self.precision, self._precision_note = choose_precision(
            precision, self.device, lambda name: self._drift(model, PRECISIONS[name])
        )
        self.dtype = PRECISIONS[self.precision]
        self._quantized = quantize(model, ranges or {}) if self.precision == "int8" else 0
        self._rounds = self.precision == "bf16" and self.device.type == "cpu" and not multiplies_bf16(self.device)
        if self._rounds:
            round_weights_and_maps(model, self.dtype)
            self.dtype = torch.float32
        self.model = model.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        # Not where canvases are exact: those are for comparing, to the last digits too.
        alike = canvas == "exact" or self._rounds or self.dtype != torch.float32 or self.device.type != "cpu"
        self._quick = 0 if alike else use_winograd(self.model)
        if not self._rounds and can_pack(self.device, self.dtype):
            pack_convolutions(self.model)
        head = model.config.roi_head
        self.defaults = DetectOptions(
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
        """Load a manifest name, a .safetensors or a .pth file.

        precision: ``int8`` also reads FILE.ranges.json.
        preset: needed only where neither the manifest, nor the file, nor its keys say it. Raises ``CheckpointError``
        for a file that is missing, damaged or of another detector, ``DeviceError`` for a device that cannot be used,
        ``ValueError`` for another argument out of range.
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
        cls, preset: str, *, seed: int = 0, classes: Sequence[str] = ("__background__", "thing"), **options: str
    ) -> Detector:
        """A detector with random weights, for tests and benchmarks: its answers mean nothing. options as above."""
        torch.manual_seed(seed)
        model = FasterRCNN(find_preset(preset).with_classes(len(classes)))
        checkpoint = ResolvedCheckpoint(name="random", path=_NOWHERE, preset=preset, classes=tuple(classes))
        return cls(model, checkpoint, **options)  # type: ignore[arg-type]

    @property
    def info(self) -> DetectorInfo:
        """What this detector is, and how it runs just now."""
        notes = ["Eager."]
        if self._quantized:
            notes.append(f"oneDNN's own code for {self._quantized} layers in int8.")
        if self._rounds:
            notes.append("This processor has no products of bf16; fp32 with rounding gives its answers, but no speed.")
        if self._precision_note:
            notes.append(self._precision_note)
        if self._quick:
            notes.append(f"Winograd's way for {self._quick} convolutions.")
        return replace(self._about, engine_note=" ".join(notes))

    @cached_property
    def _about(self) -> DetectorInfo:
        config = self.config
        canvas = self.canvases.all[-1] if self.canvases.all else (config.transform.max_size,) * 2
        levels = zip(config.anchors.sizes, self._strides(canvas), strict=True)
        return DetectorInfo(
            name=self.checkpoint.name,
            preset=config.name,
            classes=self.checkpoint.classes,
            precision=self.precision,
            device=str(self.device),
            canvases=self.canvases.all,
            anchors=tuple(
                {"stride": stride, "sizes": sizes, "ratios": config.anchors.ratios} for sizes, stride in levels
            ),
            parameters=self.parameters,
            sha256=self.checkpoint.sha256,
            metrics=self.checkpoint.metrics,
            score_threshold=_known(self.defaults.score_threshold),
            nms_threshold=_known(self.defaults.nms_threshold),
            max_detections=_known(self.defaults.max_detections),
            max_proposals=config.rpn.post_nms,
            engine="eager",
            engine_note="",
        )

    def canvas_for(self, height: int, width: int) -> Canvas:
        """The canvas (height, width) that a picture of this size is padded to: pictures of one canvas share a batch."""
        return self.canvases.of(height, width)

    def warm_up(self) -> None:
        """Run once on every canvas (on one picture's, with exact canvases), so that a first caller does not wait."""
        for height, width in self.canvases.all or (self.canvas_for(480, 640),):
            self._detect([_grey(height, width)], [self.defaults], (height, width))

    def detect(
        self,
        images: Sequence[Image],
        options: DetectOptions | Sequence[DetectOptions] | None = None,
        regions: Sequence[Regions | None] | None = None,
    ) -> list[Detections]:
        """Detect in pictures, uint8 RGB [H, W, 3] of any sizes; one ``Detections`` each, in their order, on the CPU.

        options: one for all, or one a picture. regions: for each picture boxes [R, 4] in its pixels, a shorter way to
        write ``DetectOptions.regions``, or None. Pictures that share a canvas go through the network together. Raises
        ``ValueError`` for an array that is no picture and for an option out of range; then nothing has been computed.
        Raises ``NotFiniteError``, which has the other pictures' detections, where the network's values overflowed.
        """
        wanted = [options or DetectOptions()] * len(images) if not isinstance(options, Sequence) else list(options)
        if len(wanted) != len(images):
            raise ValueError(f"{len(wanted)} options for {len(images)} images: give one for all, or one each.")
        if regions is not None:
            if len(regions) != len(images):
                raise ValueError(f"Regions for {len(regions)} images, and there are {len(images)}: give None for some.")
            wanted = [
                option if boxes is None else replace(option, regions=_rows(boxes))
                for option, boxes in zip(wanted, regions, strict=True)
            ]
        resolved = [self._resolve(option) for option in wanted]
        groups: dict[Canvas, list[int]] = defaultdict(list)
        for index, (image, option) in enumerate(zip(images, resolved, strict=True)):
            check_image(image)
            groups[self.canvas_for(*(option.full_size or image.shape[:2]))].append(index)
        results: list[Detections | None] = [None] * len(images)
        for canvas, members in groups.items():
            found = self._detect([images[i] for i in members], [resolved[i] for i in members], canvas)
            for index, result in zip(members, found, strict=True):
                results[index] = result
        sound = [result for result in results if result is not None]
        if len(sound) < len(results):
            raise NotFiniteError(results, self.precision)
        return sound

    @torch.inference_mode()
    def _detect(
        self, images: Sequence[Image], options: Sequence[DetectOptions], canvas: Canvas
    ) -> list[Detections | None]:
        """One batch on one canvas; None for a picture for which the network's values are not finite."""
        with float32_products(self.precision, self.device):
            clock = Clock(self.device)
            batch = self.transform(images, canvas, self.device, [wanted.full_size for wanted in options])
            clock.lap("transform")
            results = run(self.model, self.dtype, batch, options, self.checkpoint.classes, clock)
            laps = clock.laps()
        return [None if result is None else replace(result, timings=laps) for result in results]

    def _drift(self, model: FasterRCNN, dtype: torch.dtype) -> float:
        """Measure how far ``dtype`` moves the answer of ``model``, which is in float32 and is moved to the device."""
        canvas = self.canvas_for(480, 640)
        batch = self.transform([probe_image(canvas).numpy()], canvas, self.device)
        regions = random_regions(canvas, 100, self.device)
        with float32_products("fp32", self.device):
            return measure_drift(model.to(self.device), batch.pixels, regions, dtype)

    def _resolve(self, options: DetectOptions) -> DetectOptions:
        """``options`` with the checkpoint's defaults for what they leave open, checked."""
        defaults = self.defaults
        score = defaults.score_threshold if options.score_threshold is None else options.score_threshold
        nms = defaults.nms_threshold if options.nms_threshold is None else options.nms_threshold
        limit = defaults.max_detections if options.max_detections is None else options.max_detections
        for name, value in (("score_threshold", score), ("nms_threshold", nms)):
            if not 0 <= _known(value) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {value}.")
        if _known(limit) < 1:
            raise ValueError(f"max_detections must be at least 1, not {limit}.")
        if options.full_size is not None and min(options.full_size) < 1:
            raise ValueError(f"full_size must be at least 1 x 1, not {options.full_size}.")
        if options.proposals < 0:
            raise ValueError(f"proposals must be 0 or more, not {options.proposals}.")
        if options.trace and options.class_ids is not None:
            raise ValueError("A trace looks at all classes: give no class_ids with it.")
        if options.regions is not None and (options.trace or options.proposals):
            raise ValueError("With regions the RPN does not run: there are no proposals and no trace to return.")
        for box in options.regions or ():
            if not (len(box) == 4 and all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]):
                raise ValueError(f"A region must be x1, y1, x2, y2 with x1 < x2 and y1 < y2, not {box}.")
        for class_id in options.class_ids or ():
            if not 0 < class_id < len(self.checkpoint.classes):
                raise ValueError(f"There is no class {class_id}: ids run from 1 to {len(self.checkpoint.classes) - 1}.")
        return replace(options, score_threshold=score, nms_threshold=nms, max_detections=limit)

    def _strides(self, canvas: Canvas) -> tuple[int, ...]:
        if self.config.anchors.strides is not None:
            return self.config.anchors.strides
        # torchvision's strides depend on the canvas (trap 4); these are of the largest one.
        with torch.device("meta"):
            maps = FasterRCNN(self.config).backbone(torch.empty(1, 3, *canvas))
        shapes = tuple((level.shape[2], level.shape[3]) for level in maps)
        return tuple(vertical for vertical, _ in level_strides(self.config.anchors, canvas, shapes))


def _rows(boxes: Regions) -> tuple[tuple[float, float, float, float], ...]:
    rows = np.asarray(boxes, dtype=np.float64)
    if rows.size and (rows.ndim != 2 or rows.shape[1] != 4):
        raise ValueError(f"Regions must have the shape [R, 4], not {list(rows.shape)}.")
    return tuple((row[0], row[1], row[2], row[3]) for row in rows.tolist())


def _known(value: T | None) -> T:
    """A value that ``_resolve`` has filled in."""
    assert value is not None
    return value


def _grey(height: int, width: int) -> Image:
    return np.full((height, width, 3), 127, dtype=np.uint8)
