"""Frozen dataclasses that describe a detector; ``model.presets`` has the ones that checkpoints exist for.

Sources beside each constant: P = arXiv 1506.01497v3, PFR = the authors' py-faster-rcnn, TV = torchvision 0.29.1
``models/detection``. Nothing here is read from the environment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The name of class 0 in every list of class names (TV).
BACKGROUND_NAME = "__background__"
# TV: dw and dh are clamped from above only, so that exp cannot overflow; a small box may shrink as far as it likes.
MAX_LOG_SCALE = math.log(1000.0 / 16)


@dataclass(frozen=True)
class TransformConfig:
    """Settings of the resize and the normalisation of images.

    min_size, max_size: the short side is scaled to min_size unless the long side would exceed max_size; pixels.
    mean, std: per channel of RGB in [0, 1]; in RGB order for ``bgr`` too.
    bgr: the network expects the blue channel first (Caffe's VGG-16).
    antialias: low-pass filter before shrinking, and round sizes to the nearest pixel. TV does neither, so its presets
        do not; LITE does, because photographs are often ten times larger than its canvas.
    stride: heights and widths of the canvas are multiples of this.
    """

    min_size: int
    max_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    bgr: bool = False
    antialias: bool = False
    stride: int = 32


@dataclass(frozen=True)
class AnchorConfig:
    """Base anchors, one tuple of sizes for each level; every level has all the ratios.

    sizes: square roots of the anchors' areas, canvas pixels.
    ratios: height over width. Anchors of a cell are ordered by ratio first, then by size (TV and PFR).
    rounded: round base anchors to whole pixels (TV).
    strides: canvas pixels between cells, by level. None derives them from the padded canvas (``canvas // map``) as TV
        does, which gives 61 and not 64 for P6 at a height of 800: its checkpoints were trained with these.
    legacy: compute them as PFR's generate_anchors: sides rounded at the size of a cell, centred on it.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounded: bool = True
    strides: tuple[int, ...] | None = None
    legacy: bool = False

    @property
    def per_cell(self) -> int:
        """Return the number of anchors of a cell, k in the paper; it is the same on every level."""
        return len(self.sizes[0]) * len(self.ratios)


@dataclass(frozen=True)
class RPNConfig:
    """Settings of the region proposal network.

    convs: how many 3x3 convolutions precede the two sibling layers (P 3.1: one; TV v2: two).
    channels: width of those convolutions; None keeps the map's.
    softmax: two logits for each anchor, [k background | k object] (P 3.1, PFR), instead of one logit and a sigmoid.
    pre_nms: candidates kept on each level before NMS. post_nms: proposals kept of each image after it. Both at
        inference; ``pre_nms_train`` and ``post_nms_train`` in training.
    nms_threshold: of two boxes of a level that overlap by more (IoU), the less likely is dropped.
    min_size: proposals whose width or height on the canvas is below this are dropped (TV 1e-3; PFR 16 x scale).
    scale_min_size: ``min_size`` is in pixels of the original image, and multiplied by the resize scale (PFR).
    score_threshold: objectness at or above this is kept (TV; the detector's threshold, in contrast, is exclusive).
    """

    convs: int = 1
    channels: int | None = None
    softmax: bool = False
    pre_nms: int = 1000
    post_nms: int = 1000
    pre_nms_train: int = 2000
    post_nms_train: int = 2000
    nms_threshold: float = 0.7
    min_size: float = 1e-3
    scale_min_size: bool = False
    score_threshold: float = 0.0


@dataclass(frozen=True)
class RoIHeadConfig:
    """Settings of the Fast R-CNN detector.

    pool: ``align`` (RoIAlign with ``aligned=False``, as TV) or ``max`` (the paper's RoIPool).
    resolution: bins along each side of a pooled region.
    sampling: samples in a bin along each axis; RoIAlign only.
    levels: pyramid levels that regions are pooled from, as positions in the backbone's output.
    scales: map cells per canvas pixel, by pooled level. Fixed, where TV derives them from the first batch that it sees.
    canonical_size, canonical_level: a region with this side is pooled from this level (FPN, arXiv 1612.03144, eq. 1).
    conv_channels: widths of 3x3 convolutions before the fully connected layers (TV v2: four of 256).
    fc_channels: widths of the fully connected layers.
    fc6_rank: channels between the two factors of the first of them; None keeps it one layer of full rank.
    dropout: between fully connected layers in training (PFR prototxt: 0.5).
    box_weights: multipliers of (tx, ty, tw, th); the inverse of PFR's target standard deviations.
    score_threshold, nms_threshold, max_detections: defaults of the options of the same names.
    min_size: detections whose width or height on the canvas is below this are dropped.
    """

    pool: str = "align"
    resolution: int = 7
    sampling: int = 2
    levels: tuple[int, ...] = (0, 1, 2, 3)
    scales: tuple[float, ...] = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    canonical_size: int = 224
    canonical_level: int = 4
    conv_channels: tuple[int, ...] = ()
    fc_channels: tuple[int, ...] = (1024, 1024)
    fc6_rank: int | None = None
    dropout: float = 0.0
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_size: float = 1e-2


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of the sampling of anchors and regions for the losses, and of smooth L1 (P 3.1.2, PFR config, TV).

    rpn_positive_iou, rpn_negative_iou: an anchor is positive at or above the first, background below the second.
    rpn_batch, rpn_positive_fraction: anchors sampled from each image.
    rpn_beta, roi_beta: where smooth L1 turns from quadratic to linear.
    cross_boundary: use anchors that cross the image's border too (TV does; the paper ignores them).
    roi_positive_iou, roi_negative_iou: a region is foreground at or above the first, background from the second up to
        the first.
    roi_batch, roi_positive_fraction: regions sampled from each image.
    """

    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_batch: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_beta: float = 1 / 9
    cross_boundary: bool = True
    roi_positive_iou: float = 0.5
    roi_negative_iou: float = 0.0
    roi_batch: int = 512
    roi_positive_fraction: float = 0.25
    roi_beta: float = 1 / 9


@dataclass(frozen=True)
class DetectorConfig:
    """Settings of a whole detector. ``num_classes`` counts background; ``dataclasses.replace`` makes variants.

    backbone: a name in ``model.backbones.BACKBONES``.
    norm_eps: epsilon of the backbone's frozen batch norms. 0 for ResNet-50 v1 alone, whose checkpoint TV trained with
        it; 1e-5 everywhere else.
    fpn_channels: 0 for no pyramid (the paper's single map).
    fpn_norm: batch norm after every convolution of the pyramid (TV v2).
    fpn_pool: add one more level, the coarsest subsampled by 2 (TV's LastLevelMaxPool).
    """

    name: str
    backbone: str
    num_classes: int
    transform: TransformConfig
    anchors: AnchorConfig
    rpn: RPNConfig
    roi_head: RoIHeadConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    norm_eps: float = 1e-5
    fpn_channels: int = 256
    fpn_norm: bool = False
    fpn_pool: bool = True

    def with_classes(self, num_classes: int) -> DetectorConfig:
        """Return the same detector for another number of classes, background included."""
        return replace(self, num_classes=num_classes)
