"""Load one set of weights into torchvision's parts and into ours, so that speeds are compared on the same work.

torchvision's four presets: its own detector as it builds it for its published weights, with random ones that behave
(as the parity tests do), since nothing is downloaded here. LITE: the bundled weights of lite-voc20, with our backbone
between torchvision's transform, RPN and RoI heads: what somebody without this engine would serve.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import WeightsEnum
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.lib.results import ROOT
from model.backbones import build_backbone
from model.checkpoint import fc6_rank_of, read_state, resolve
from model.config import TransformConfig
from model.presets import LITE
from model.transform import resized_size

PRESETS = ("RESNET50_FPN", "LITE")
_CACHE = ROOT / "benchmarks/.cache"


def checkpoint(preset: str) -> str:
    """Return what ``Detector.from_checkpoint`` and ``FRCNN_WEIGHTS`` take; the first call makes random weights."""
    if preset == "LITE":
        return "lite-voc20"
    path = _CACHE / f"{preset}.pth"
    if not path.exists():
        from tests.parity.reference import make_pair

        _CACHE.mkdir(exist_ok=True)
        reference, _ = make_pair(preset, seed=0)
        path.with_suffix(".classes.txt").write_text("\n".join(["__background__", *map(str, range(1, 91))]) + "\n")
        unfinished = path.with_suffix(".part")
        torch.save(reference.state_dict(), unfinished)
        unfinished.replace(path)
    return str(path)


def torchvision_detector(preset: str) -> nn.Module:
    """Return torchvision's detector with those weights, in evaluation mode."""
    state = read_state(resolve(checkpoint(preset)))
    if preset == "LITE":
        return _lite(state)
    from tests.parity.reference import PUBLISHED

    build, weights = PUBLISHED[preset]
    with patch.object(WeightsEnum, "get_state_dict", lambda *_, **__: state):
        return build(weights=weights).eval()


def _lite(state: dict[str, Tensor]) -> nn.Module:
    transform, head = LITE.transform, LITE.roi_head
    model = FasterRCNN(
        _NamedMaps(),
        image_mean=list(transform.mean),
        image_std=list(transform.std),
        rpn_anchor_generator=_UnroundedAnchors(LITE.anchors.sizes, (LITE.anchors.ratios,) * len(LITE.anchors.sizes)),
        rpn_pre_nms_top_n_test=LITE.rpn.pre_nms,
        rpn_post_nms_top_n_test=LITE.rpn.post_nms,
        box_roi_pool=MultiScaleRoIAlign(
            ["0", "1", "2"],
            head.resolution,
            head.sampling,
            canonical_scale=head.canonical_size,
            canonical_level=head.canonical_level,
        ),
        box_head=TwoMLPHead(LITE.fpn_channels * head.resolution**2, head.fc_channels[0]),
        box_predictor=FastRCNNPredictor(head.fc_channels[-1], len(state["roi_heads.box_predictor.cls_score.bias"])),
        box_score_thresh=resolve(checkpoint("LITE")).score_threshold or head.score_threshold,
        box_nms_thresh=head.nms_threshold,
        box_detections_per_img=head.max_detections,
    )
    model.transform = _AntialiasedTransform(transform)
    if (rank := fc6_rank_of(state)) is not None:
        fc6 = model.roi_heads.box_head.fc6
        model.roi_heads.box_head.fc6 = nn.Sequential(
            nn.Linear(fc6.in_features, rank, bias=False), nn.Linear(rank, fc6.out_features)
        )
    model.load_state_dict(state)
    return model.eval()


class _NamedMaps(nn.Module):
    """Our body and pyramid; the maps have names, as torchvision's RoI pooling needs."""

    def __init__(self) -> None:
        super().__init__()
        backbone, self.out_channels = build_backbone(LITE)
        self.body, self.fpn = backbone.body, backbone.fpn

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        assert self.fpn is not None
        return OrderedDict((str(level), maps) for level, maps in enumerate(self.fpn(self.body(pixels))))


class _UnroundedAnchors(AnchorGenerator):
    """torchvision's anchors, with base anchors that are not rounded."""

    def generate_anchors(self, scales: Any, aspect_ratios: Any, dtype: Any = torch.float32, device: Any = "cpu") -> Any:
        sides = torch.as_tensor(scales, dtype=dtype, device=device)
        vertical = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths, heights = (1 / vertical[:, None] * sides).view(-1), (vertical[:, None] * sides).view(-1)
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2


class _AntialiasedTransform(GeneralizedRCNNTransform):
    """torchvision's transform, with the low-pass filter that LITE was trained with."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__(config.min_size, config.max_size, list(config.mean), list(config.std))
        self.config = config

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        height, width = image.shape[-2:]
        size = resized_size(self.config, int(height), int(width))  # in a trace they are tensors
        if size == (int(height), int(width)):
            return image, target
        scaled = F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        return scaled, target
