"""The nouns that pass from room to room.

Shape glossary, used in every docstring of ``model/``:

    B  pictures in a batch            H, W    canvas height and width, pixels
    L  pyramid levels                 Hl, Wl  height and width of level l's map, cells
    A  anchors a cell                 C       channels, or classes with background where said
    N  anchors of a picture, all levels; M candidates after top-k; R regions (RoIs); D detections

Boxes are always float32 ``[x1, y1, x2, y2]``, x to the right and y down, continuous coordinates: a box that covers
one pixel is 1 wide (torchvision's convention, not py-faster-rcnn's inclusive one). Two frames exist: the *canvas*
(the resized, padded picture that the network sees) and the *picture* (as the caller gave it). Docstrings say which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ImageBatch:
    """Pictures on one canvas, ready for the backbone.

    pixels: float [B, 3, H, W], normalised, zero outside each picture.
    sizes: int64 [B, 2], height and width of each picture on the canvas, after resizing.
    original_sizes: int64 [B, 2], height and width as given.
    """

    pixels: Tensor
    sizes: Tensor
    original_sizes: Tensor

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the canvas in pixels."""
        return int(self.pixels.shape[-2]), int(self.pixels.shape[-1])

    def __len__(self) -> int:
        return int(self.pixels.shape[0])


@dataclass(frozen=True)
class Proposals:
    """What the RPN hands to the detector, for one picture, by falling objectness.

    boxes: float32 [R, 4], clipped to the picture.
    objectness: float32 [R], probability in [0, 1].
    levels: int64 [R], pyramid level by position, 0 is the finest.
    anchor_indices: int64 [R], position among all N anchors of the canvas (level-major, then y, x, anchor).
    anchors: float32 [R, 4], the anchor that each box was decoded from.
    deltas: float32 [R, 4], the offsets (tx, ty, tw, th) of the paper's equation 2.
    ranks: int64 [R], 0-based place of the anchor by objectness among its level's anchors.

    Boxes and anchors share one frame: the canvas inside ``model/``, the picture after the facade.
    """

    boxes: Tensor
    objectness: Tensor
    levels: Tensor
    anchor_indices: Tensor
    anchors: Tensor
    deltas: Tensor
    ranks: Tensor

    def __len__(self) -> int:
        return int(self.boxes.shape[0])

    def __getitem__(self, index: slice | Tensor) -> Proposals:
        return Proposals(
            boxes=self.boxes[index],
            objectness=self.objectness[index],
            levels=self.levels[index],
            anchor_indices=self.anchor_indices[index],
            anchors=self.anchors[index],
            deltas=self.deltas[index],
            ranks=self.ranks[index],
        )


@dataclass(frozen=True)
class Detections:
    """What was found in one picture, by falling score.

    boxes: float32 [D, 4] in the picture's pixels, clipped to it.
    scores: float32 [D] in [0, 1].
    class_ids: int64 [D], index into the checkpoint's classes; 0 is background and never appears.
    labels: the D class names.
    proposal_indices: int64 [D], the proposal that each detection was refined from: a row of the RPN's whole final
        list, which ``proposals`` holds the first rows of.
    proposals: the first rows of the RPN's final list, as many as were asked for; None where none were.
    timings: seconds by stage (transform, backbone, rpn, roi_head, postprocess) of the batch this picture was in.
    batch_size: pictures in that batch.
    """

    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    labels: tuple[str, ...]
    proposal_indices: Tensor
    proposals: Proposals | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 1

    def __len__(self) -> int:
        return int(self.boxes.shape[0])


@dataclass(frozen=True)
class DetectOptions:
    """What one picture's caller wants; None means the checkpoint's own default.

    score_threshold: in [0, 1]; detections score strictly above it.
    nms_threshold: in [0, 1]; of two boxes of a class that overlap by more, the lower score goes.
    max_detections: at least 1.
    class_ids: keep these classes only.
    proposals: how many of the RPN's final proposals to return.
    """

    score_threshold: float | None = None
    nms_threshold: float | None = None
    max_detections: int | None = None
    class_ids: tuple[int, ...] | None = None
    proposals: int = 0


@dataclass(frozen=True)
class DetectorInfo:
    """What a detector is, for people and for ``GET /model``.

    classes: names by class id; index 0 is background.
    canvases: (height, width) pairs that pictures are padded to; empty where any multiple of the stride serves.
    anchors: per level a mapping with ``stride``, ``sizes`` and ``ratios`` (height over width).
    engine: ``eager`` or ``compiled``; engine_note says why, in a sentence.
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
    engine: str
    engine_note: str
