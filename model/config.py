"""What a detector is made of: frozen dataclasses, and the presets that the world has checkpoints for.

Sources beside each constant: P = arXiv 1506.01497v3, PFR = the authors' py-faster-rcnn, TV = torchvision 0.29.1
``models/detection``. Nothing here is read from the environment, and nothing here is mutable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TransformConfig:
    """How a picture becomes a canvas.

    min_size, max_size: the short side is scaled to min_size unless the long side would pass max_size; pixels.
    mean, std: per channel of RGB in [0, 1]; for ``bgr`` they are still listed in RGB order.
    bgr: the network wants blue first (Caffe's VGG-16).
    antialias: low-pass before shrinking, and round sizes to the nearest. TV does neither (trap 17); our own LITE does,
        for photographs ten times its canvas.
    stride: canvases are multiples of this.
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
    """Base anchors, one tuple of sizes a level; every level has all the ratios.

    sizes: square roots of the anchors' areas, canvas pixels.
    ratios: height over width. Anchors of a cell are ratio-major (TV and PFR; trap 3).
    rounded: round base anchors to whole pixels (TV; trap 2).
    strides: canvas pixels between cells, by level. None infers them from the padded canvas (``canvas // map``) as TV
        does, which is 61 and not 64 for P6 at a height of 800 (trap 4): checkpoints were trained so.
    legacy: PFR's generate_anchors: sides rounded at the size of a cell, centred on it.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounded: bool = True
    strides: tuple[int, ...] | None = None
    legacy: bool = False

    @property
    def per_cell(self) -> int:
        """Anchors a cell, k in the paper; the same on every level."""
        return len(self.sizes[0]) * len(self.ratios)


@dataclass(frozen=True)
class RPNConfig:
    """The region proposal network.

    convs: how many 3x3 convolutions before the siblings (P 3.1: one; TV v2: two).
    channels: width of those convolutions; None keeps the map's.
    softmax: two logits an anchor, [k background | k object] (P 3.1, PFR; trap 14), instead of one logit and a sigmoid.
    pre_nms, post_nms: kept a level before NMS; kept of the picture after it, at test (``_train``: in training).
    min_size: proposals whose width or height on the canvas is below this are dropped (TV 1e-3; PFR 16 x scale).
    scale_min_size: ``min_size`` is in the original picture's pixels, multiplied by the resize scale (PFR).
    score_threshold: objectness at or above this is kept (trap 10: >=, where the detector's is >).
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
    """The Fast R-CNN detector.

    pool: ``align`` (RoIAlign, aligned=False, trap 15) or ``max`` (the paper's RoIPool).
    sampling: samples a bin along each axis; RoIAlign only.
    levels: pyramid levels pooled from, positions in the backbone's output.
    scales: map cells a canvas pixel, by pooled level. Fixed, never inferred from a first picture (trap 5).
    canonical_size, canonical_level: a region of this side is pooled from this level (trap 16's formula).
    conv_channels: widths of 3x3 convolutions before the fully connected layers (TV v2: four of 256).
    fc_channels: widths of the fully connected layers.
    fc6_rank: the first of them is a product of two, with so many channels between; None: one layer of full rank.
    dropout: between fully connected layers in training (PFR prototxt: 0.5).
    box_weights: multipliers of (tx, ty, tw, th); one over PFR's target standard deviations.
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
class TrainConfig:
    """What the two losses sample and how they weigh (FACTS: P 3.1.2, PFR config, TV).

    rpn_positive_iou, rpn_negative_iou: an anchor is object at or above the first, background below the second.
    rpn_batch, rpn_positive_fraction: anchors sampled a picture.
    rpn_beta, roi_beta: where smooth L1 turns from square to line.
    cross_boundary: train anchors that cross the picture's border too (TV does; the paper ignores them).
    roi_positive_iou, roi_negative_iou: foreground at or above the first; background below it, from the second on.
    roi_batch, roi_positive_fraction: regions sampled a picture.
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
    """A whole detector. ``num_classes`` counts background; ``dataclasses.replace`` makes variants.

    backbone: vgg16, resnet50, mobilenet_v3_large or efficientnet_lite0.
    norm_eps: epsilon of the backbone's frozen batch norms (trap 7: 0 for ResNet-50 v1 alone).
    fpn_channels: 0 for no pyramid (the paper's single map).
    fpn_norm: batch norm after every pyramid convolution (TV v2).
    fpn_pool: one more level, the coarsest subsampled by 2 (TV's LastLevelMaxPool).
    """

    name: str
    backbone: str
    num_classes: int
    transform: TransformConfig
    anchors: AnchorConfig
    rpn: RPNConfig
    roi_head: RoIHeadConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    norm_eps: float = 1e-5
    fpn_channels: int = 256
    fpn_norm: bool = False
    fpn_pool: bool = True

    def with_classes(self, num_classes: int) -> DetectorConfig:
        """The same detector for another number of classes, background counted."""
        return replace(self, num_classes=num_classes)


# TV faster_rcnn.py: 91 categories, background counted (FACTS section 2).
COCO_CLASSES = 91
# TV: dw and dh are clamped from above only, so that exp cannot overflow (trap 8).
MAX_LOG_SCALE = math.log(1000.0 / 16)

_FPN_SIZES = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
_MOBILENET_SIZES = ((32.0, 64.0, 128.0, 256.0, 512.0),) * 3

RESNET50_FPN = DetectorConfig(
    name="RESNET50_FPN",
    backbone="resnet50",
    num_classes=COCO_CLASSES,
    transform=TransformConfig(min_size=800, max_size=1333),
    anchors=AnchorConfig(sizes=_FPN_SIZES),
    rpn=RPNConfig(),
    roi_head=RoIHeadConfig(),
    norm_eps=0.0,
)

RESNET50_FPN_V2 = replace(
    RESNET50_FPN,
    name="RESNET50_FPN_V2",
    rpn=RPNConfig(convs=2),
    roi_head=RoIHeadConfig(conv_channels=(256, 256, 256, 256), fc_channels=(1024,)),
    norm_eps=1e-5,
    fpn_norm=True,
)

# TV: maps '0' and '1' are both stride 32 and 'pool' is 64; the level rule sends every region to '0' (trap 6).
MOBILENET_V3_FPN = DetectorConfig(
    name="MOBILENET_V3_FPN",
    backbone="mobilenet_v3_large",
    num_classes=COCO_CLASSES,
    transform=TransformConfig(min_size=800, max_size=1333),
    anchors=AnchorConfig(sizes=_MOBILENET_SIZES),
    rpn=RPNConfig(score_threshold=0.05),
    roi_head=RoIHeadConfig(levels=(0, 1), scales=(1 / 32, 1 / 32)),
)

MOBILENET_V3_320 = replace(
    MOBILENET_V3_FPN,
    name="MOBILENET_V3_320",
    transform=TransformConfig(min_size=320, max_size=640),
    rpn=RPNConfig(score_threshold=0.05, pre_nms=150, post_nms=150),
)

PAPER_VGG16 = DetectorConfig(
    name="PAPER_VGG16",
    backbone="vgg16",
    num_classes=21,
    transform=TransformConfig(
        min_size=600,  # P 3.3
        max_size=1000,
        mean=(122.7717 / 255, 115.9465 / 255, 102.9801 / 255),  # PFR config PIXEL_MEANS, given there as BGR
        std=(1 / 255, 1 / 255, 1 / 255),
        bgr=True,
        stride=16,
    ),
    # P 3.3: areas 128^2, 256^2 and 512^2, ratios 1:2, 1:1 and 2:1; corners as PFR generate_anchors rounds them
    anchors=AnchorConfig(sizes=((128.0, 256.0, 512.0),), strides=(16,), legacy=True),
    rpn=RPNConfig(
        channels=512,  # P 3.1
        softmax=True,  # P 3.1: 2k scores
        pre_nms=6000,  # PFR config TEST.RPN_PRE_NMS_TOP_N
        post_nms=300,  # P 3.3; PFR config TEST.RPN_POST_NMS_TOP_N
        pre_nms_train=12000,  # PFR config TRAIN.RPN_PRE_NMS_TOP_N
        post_nms_train=2000,  # P 3.3; PFR config TRAIN.RPN_POST_NMS_TOP_N
        nms_threshold=0.7,  # P 3.3
        min_size=16.0,  # PFR config RPN_MIN_SIZE, times the scale
        scale_min_size=True,
    ),
    roi_head=RoIHeadConfig(
        pool="max",  # Fast R-CNN 2.1: RoIPool
        resolution=7,
        levels=(0,),
        scales=(1 / 16,),
        fc_channels=(4096, 4096),  # VGG-16's fc6 and fc7
        dropout=0.5,  # PFR prototxt
        box_weights=(10.0, 10.0, 5.0, 5.0),  # PFR config BBOX_NORMALIZE_STDS 0.1, 0.1, 0.2, 0.2
        score_threshold=0.05,  # PFR test.py
        nms_threshold=0.3,  # PFR config TEST.NMS
        max_detections=100,  # PFR test.py
        min_size=0.0,
    ),
    train=TrainConfig(
        rpn_positive_iou=0.7,  # P 3.1.2
        rpn_negative_iou=0.3,  # P 3.1.2
        rpn_batch=256,  # P 3.1.3
        rpn_positive_fraction=0.5,  # P 3.1.3
        rpn_beta=1 / 9,  # PFR prototxt: sigma 3
        cross_boundary=False,  # P 3.1.3
        roi_batch=128,  # PFR config TRAIN.BATCH_SIZE
        roi_positive_fraction=0.25,  # PFR config TRAIN.FG_FRACTION
        roi_positive_iou=0.5,  # PFR config TRAIN.FG_THRESH
        roi_negative_iou=0.0,  # PFR's two .yml files: BG_THRESH_LO 0
        roi_beta=1.0,  # PFR prototxt: sigma 1
    ),
    fpn_channels=0,
    fpn_pool=False,
)

# Our own: EfficientNet-Lite0 to strides 8/16/32 and a slim pyramid, for a laptop's CPU. Anchor sizes follow voc20's
# boxes at a long side of 384 (a quarter of them are below 50 px, half below 120), at which most training is done;
# serving at 480 and with 300 proposals was chosen on validation (docs/training-log.md).
LITE = DetectorConfig(
    name="LITE",
    backbone="efficientnet_lite0",
    num_classes=21,
    transform=TransformConfig(min_size=480, max_size=480, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, antialias=True),
    anchors=AnchorConfig(sizes=((20.0, 36.0), (64.0, 112.0), (180.0, 288.0)), rounded=False, strides=(8, 16, 32)),
    rpn=RPNConfig(pre_nms=600, post_nms=300, pre_nms_train=600, post_nms_train=300),
    roi_head=RoIHeadConfig(
        levels=(0, 1, 2),
        scales=(1 / 8, 1 / 16, 1 / 32),
        canonical_size=128,
        canonical_level=4,
        fc_channels=(512, 512),
    ),
    train=TrainConfig(rpn_batch=128, roi_batch=128),
    fpn_channels=128,
    fpn_pool=False,
)

PRESETS: tuple[DetectorConfig, ...] = (
    PAPER_VGG16,
    RESNET50_FPN,
    RESNET50_FPN_V2,
    MOBILENET_V3_FPN,
    MOBILENET_V3_320,
    LITE,
)
