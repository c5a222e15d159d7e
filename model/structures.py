"""The data that the service and the modules of ``model/`` share.

Shapes, as every docstring of ``model/`` writes them:

    B  images in a batch              H, W    canvas height and width, pixels
    L  pyramid levels                 Hl, Wl  height and width of level l's map, cells
    A  anchors a cell                 C       channels, or classes with background where said
    N  anchors of an image, all levels; M candidates after top-k; R regions (RoIs); D detections

Boxes are always float32 ``[x1, y1, x2, y2]``, x to the right and y down, continuous coordinates: a box that covers
one pixel is 1 wide (torchvision's convention, not py-faster-rcnn's inclusive one). Two frames exist: the *canvas*
(the resized, padded image that the network sees) and the *image* (as the caller gave it). Docstrings say which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import DetectorConfig
from model.transfer import upload

ImageArray = npt.NDArray[np.uint8]  # [H, W, 3], RGB
Box = tuple[float, float, float, float]  # x1, y1, x2, y2
# The stages of a batch that are timed, in order: the keys of ``Detections.timings``.
TIMED_STAGES = ("transform", "backbone", "rpn", "roi_head", "postprocess")


@dataclass(frozen=True)
class ImageBatch:
    """Images on one canvas, ready for the backbone.

    pixels: float [B, 3, H, W], normalised, zero outside each image, on the model's device.
    sizes: int64 [B, 2] on the host, height and width of each image on the canvas, after resizing.
    original_sizes: int64 [B, 2] on the host, height and width as given.
    """

    pixels: Tensor
    sizes: Tensor
    original_sizes: Tensor

    @cached_property
    def device_sizes(self) -> Tensor:
        """Return ``sizes`` as float32 [B, 2] on the device of the pixels, copied there once."""
        return upload(self.sizes, torch.float32, self.pixels.device)

    @property
    def canvas(self) -> tuple[int, int]:
        """Return height and width of the canvas in pixels."""
        return int(self.pixels.shape[-2]), int(self.pixels.shape[-1])

    def __len__(self) -> int:
        return int(self.pixels.shape[0])


@dataclass(frozen=True)
class AnchorLocations:
    """The cells and shapes of anchors: entry i of each tensor is anchor i.

    levels, rows, columns: int64 [R], the cell of that pyramid level's map.
    sizes: float32 [R], square root of the area, canvas pixels, as configured. ratios: float32 [R], height over width.
    """

    levels: Tensor
    rows: Tensor
    columns: Tensor
    sizes: Tensor
    ratios: Tensor

    def __getitem__(self, index: slice | Tensor) -> AnchorLocations:
        parts = (self.levels, self.rows, self.columns, self.sizes, self.ratios)
        return AnchorLocations(*(part[index] for part in parts))


@dataclass(frozen=True)
class Proposals:
    """The RPN's proposals for one image, by falling objectness.

    boxes: float32 [R, 4], clipped to the image.
    objectness: float32 [R], probability in [0, 1].
    levels: int64 [R], pyramid level by position, 0 is the finest.
    anchor_indices: int64 [R], position among all N anchors of the canvas (level-major, then y, x, anchor).
    anchors: float32 [R, 4], the anchor that each box was decoded from.
    deltas: float32 [R, 4], the offsets (tx, ty, tw, th) of the paper's equation 2.
    ranks: int64 [R], 0-based place of the anchor by objectness among its level's anchors.
    locations: the cell and shape of each anchor; the facade fills it in, inside ``model/`` it is None.

    Boxes and anchors share one frame: the canvas inside ``model/``, the image after the facade.
    """

    boxes: Tensor
    objectness: Tensor
    levels: Tensor
    anchor_indices: Tensor
    anchors: Tensor
    deltas: Tensor
    ranks: Tensor
    locations: AnchorLocations | None = None

    @classmethod
    def from_tensors(cls, tensors: tuple[Tensor, ...], locations: AnchorLocations | None = None) -> Proposals:
        """Build proposals from ``tensors``, in the order of the property of that name."""
        boxes, objectness, levels, anchor_indices, anchors, deltas, ranks = tensors
        return cls(boxes, objectness, levels, anchor_indices, anchors, deltas, ranks, locations)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return all fields but ``locations``, in their order."""
        return (
            self.boxes,
            self.objectness,
            self.levels,
            self.anchor_indices,
            self.anchors,
            self.deltas,
            self.ranks,
        )

    def __len__(self) -> int:
        return int(self.boxes.shape[0])

    def __getitem__(self, index: slice | Tensor) -> Proposals:
        locations = None if self.locations is None else self.locations[index]
        return Proposals.from_tensors(tuple(tensor[index] for tensor in self.tensors), locations)


@dataclass(frozen=True)
class Detections:
    """Detections in one image, by falling score.

    boxes: float32 [D, 4] in the image's pixels, clipped to it.
    scores: float32 [D] in [0, 1].
    class_ids: int64 [D], index into the checkpoint's classes; 0 is background and never appears.
    labels: the D class names.
    proposal_indices: int64 [D], the proposal that each detection was refined from: a row of the RPN's whole final
        list, which ``proposals`` holds the first rows of.
    proposals: the first rows of the RPN's final list, as many as were requested; None where none were.
    trace: everything between the backbone and the boxes; None where it was not requested.
    timings: seconds by stage, of ``TIMED_STAGES``, of the batch this image was in; no rpn where it brought regions.
    batch_size: images in that batch.
    """

    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    labels: tuple[str, ...]
    proposal_indices: Tensor
    proposals: Proposals | None = None
    trace: Trace | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 1

    def __len__(self) -> int:
        return int(self.boxes.shape[0])


class NotFiniteError(ArithmeticError):
    """Values of the network were infinite or NaN for some images, as where fp16 overflows.

    results: for each image of the call its detections, or None where its values were not finite.
    """

    def __init__(self, results: Sequence[Detections | None], precision: str) -> None:
        count = sum(result is None for result in results)
        advice = "serve with FRCNN_PRECISION=bf16 or fp32" if precision == "fp16" else "check the checkpoint's weights"
        super().__init__(
            f"The network's values in {precision} are not finite for {count} of {len(results)} image(s): {advice}."
        )
        self.results = tuple(results)


@dataclass(frozen=True)
class DetectOptions:
    """Options for one image; None means the checkpoint's own default.

    score_threshold: in [0, 1]; detections score strictly above it.
    nms_threshold: in [0, 1]; of two boxes of a class that overlap by more, the lower score goes.
    max_detections: at least 1.
    class_ids: keep these classes only.
    proposals: how many of the RPN's final proposals to return.
    trace: return a ``Trace`` too. It covers all classes, so ``class_ids`` cannot go with it.
    regions: boxes in the image's pixels to classify instead of the RPN's proposals: Fast R-CNN alone. The RPN then
        does not run for this image, so that ``proposals`` and ``trace`` cannot go with it; a detection's
        ``proposal_indices`` are rows of these. What lies outside the image is cut off; a region with no area left
        gives no detection.
    full_size: (height, width) of the image where its pixels were decoded smaller: boxes are in pixels of that size,
        and the canvas is chosen for that size. None where the pixels are at full size.
    """

    score_threshold: float | None = None
    nms_threshold: float | None = None
    max_detections: int | None = None
    class_ids: tuple[int, ...] | None = None
    proposals: int = 0
    trace: bool = False
    regions: tuple[Box, ...] | None = None
    full_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class ResolvedOptions:
    """Options for one image with the checkpoint's defaults filled in and checked; fields as in ``DetectOptions``."""

    score_threshold: float
    nms_threshold: float
    max_detections: int
    class_ids: tuple[int, ...] | None = None
    proposals: int = 0
    trace: bool = False


@dataclass(frozen=True)
class StageCounts:
    """How many anchors of one pyramid level are left after each cut of the RPN; no number is above the one before.

    anchors: all. above_threshold: objectness at or above the RPN's threshold. after_top_k: of those, the level's best.
    after_size: of those, large enough. after_nms: of those, what NMS left. kept: of those, handed to the RoI head.
    """

    level: int
    anchors: int
    above_threshold: int
    after_top_k: int
    after_size: int
    after_nms: int
    kept: int


@dataclass(frozen=True)
class HeatMap:
    """The RPN's objectness over one level's cells.

    values: float32 [Hl, Wl], the highest objectness among each cell's anchors. origin: (x, y) of the point that the
    anchors of cell (0, 0) are centred on; step: (x, y) from a cell to the next; image pixels.
    """

    level: int
    values: Tensor
    origin: tuple[float, float]
    step: tuple[float, float]


@dataclass(frozen=True)
class Trace:
    """Everything between the backbone and the detections of one image, on the CPU; all boxes in the image's pixels.

    size: height and width of the image. maps: (Hl, Wl) by level. steps: (x, y) pixels between cells by level.
    anchors: float32 [N, 4], objectness: float32 [N], deltas: float32 [N, 4]: every anchor, as ``anchor_indices`` count.
    candidates: the best anchors of each level, decoded, M in all: level-major, by falling objectness within a level.
    valid: bool [M], the candidates that entered NMS, being large and likely enough.
    after_nms: int64 [K], the candidates that NMS left, by falling objectness; the first ``config.rpn.post_nms`` of them
        are the R final proposals.
    scores: float32 [R, C] and refined: float32 [R, C, 4], the RoI head's class scores (background first) and boxes
        (clipped to the image) for every final proposal.
    detected_pairs: int64 [F, 2], (proposal, class) of what class NMS left, by falling score; the detections are the
        first ``options.max_detections`` of them.
    classes: names by class id. config, options: the thresholds that applied.
    """

    size: tuple[int, int]
    maps: tuple[tuple[int, int], ...]
    steps: tuple[tuple[float, float], ...]
    anchors: Tensor
    objectness: Tensor
    deltas: Tensor
    candidates: Proposals
    valid: Tensor
    after_nms: Tensor
    scores: Tensor
    refined: Tensor
    detected_pairs: Tensor
    classes: tuple[str, ...]
    config: DetectorConfig
    options: ResolvedOptions

    @property
    def anchor_counts(self) -> tuple[int, ...]:
        """Return the anchors of each level; they sum to N."""
        return tuple(rows * columns * self.config.anchors.per_cell for rows, columns in self.maps)

    @property
    def final_rows(self) -> Tensor:
        """Return the candidates, int64 [R], that became the final proposals, in their order."""
        return self.after_nms[: self.config.rpn.post_nms]

    def outcomes(self) -> tuple[str, ...]:
        """Return for each candidate ``low_objectness``, ``too_small``, ``rpn_nms``, ``proposal_limit`` or ``kept``."""
        outcomes = (self.candidates.objectness >= self.config.rpn.score_threshold).long()
        for number, rows in enumerate((self.valid, self.after_nms, self.final_rows), start=2):
            outcomes[rows] = number
        words = ("low_objectness", "too_small", "rpn_nms", "proposal_limit", "kept")
        return tuple(words[outcome] for outcome in outcomes.tolist())

    def stage_counts(self) -> tuple[StageCounts, ...]:
        """Count the anchors that each step of the RPN leaves, level by level."""
        likely = self.objectness >= self.config.rpn.score_threshold
        levels = self.candidates.levels

        def count(levels: Tensor) -> list[int]:
            return torch.bincount(levels, minlength=len(self.maps)).tolist()

        columns = zip(
            self.anchor_counts,
            (int(part.sum()) for part in likely.split(self.anchor_counts)),
            count(levels[likely[self.candidates.anchor_indices]]),
            count(levels[self.valid]),
            count(levels[self.after_nms]),
            count(levels[self.final_rows]),
            strict=True,
        )
        return tuple(StageCounts(level, *counts) for level, counts in enumerate(columns))

    def heat_map(self, level: int) -> HeatMap:
        """Return the objectness of one level, 0 the finest."""
        start = sum(self.anchor_counts[:level])
        values = self.objectness[start : start + self.anchor_counts[level]].view(*self.maps[level], -1).amax(dim=-1)
        x1, y1, x2, y2 = self.anchors[start].tolist()
        return HeatMap(level, values, ((x1 + x2) / 2, (y1 + y2) / 2), self.steps[level])


@dataclass(frozen=True)
class DetectorInfo:
    """A description of a detector, for people and for ``GET /model``.

    classes: names by class id; index 0 is background.
    canvases: (height, width) pairs that images are padded to; empty where any multiple of the stride serves.
    anchors: per level a mapping with ``stride``, ``sizes`` and ``ratios`` (height over width).
    optimizations: sentences that say what was done to the network for speed, and why a precision was chosen.
    """

    name: str
    preset: str
    classes: tuple[str, ...]
    precision: str
    device: str
    canvases: tuple[tuple[int, int], ...]
    anchors: tuple[Mapping[str, object], ...]
    parameters: int
    sha256: str | None
    metrics: Mapping[str, float]
    score_threshold: float
    nms_threshold: float
    max_detections: int
    max_proposals: int
    optimizations: tuple[str, ...]
