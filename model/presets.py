"""The detectors that checkpoints exist for, each a frozen ``DetectorConfig``.

Sources beside each constant: P = arXiv 1506.01497v3, PFR = the authors' py-faster-rcnn, TV = torchvision 0.29.1
``models/detection``.
"""

from __future__ import annotations

from dataclasses import replace

from model.config import AnchorConfig, DetectorConfig, RoIHeadConfig, RPNConfig, SamplingConfig, TransformConfig

# TV faster_rcnn.py: 91 categories, background counted.
COCO_CLASSES = 91

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

# TV: the maps '0' and '1' both have stride 32, and 'pool' has 64. With two equal scales the rule of levels assigns
# every region to '0', so only that map is pooled from; the checkpoints were trained so.
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
    sampling=SamplingConfig(
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

# Of this project: EfficientNet-Lite0 to strides 8, 16 and 32 and a narrow pyramid, for a laptop's CPU. Anchor sizes
# follow voc20's boxes at a long side of 384 (a quarter of them are below 50 px, half below 120), at which
# most training is done; serving at 480 and with 300 proposals was chosen on validation (docs/training-log.md).
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
    sampling=SamplingConfig(rpn_batch=128, roi_batch=128),
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


def find_preset(name: str) -> DetectorConfig:
    """Return the preset called ``name``; raise ``ValueError`` that lists the presets where there is none."""
    for config in PRESETS:
        if config.name == name:
            return config
    raise ValueError(f"No preset {name!r}: one of {', '.join(config.name for config in PRESETS)}.")
