"""torchvision's published detectors with random weights that behave, and ours with the same state dict.

The reference is built by torchvision's own public functions as for its published weights (frozen norms, their
epsilon, everything), only that the download is replaced by a random state dict. Random weights score all anchors and
classes alike, so the four predicting layers are scaled until objectness spreads and tens of boxes survive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from unittest.mock import patch

import numpy as np
import torch
import torchvision.models.detection as published
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection.faster_rcnn import FasterRCNN as Reference
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.models.resnet import Bottleneck
from torchvision.ops.poolers import initLevelMapper

from model import boxes as box_ops
from model import checkpoint
from model.config import DetectorConfig, TransformConfig
from model.faster_rcnn import FasterRCNN
from model.presets import find_preset
from model.runtime.forward import ForwardPass
from model.runtime.stage_timer import StageTimer
from model.structures import Detections, ImageArray, ImageBatch, ResolvedOptions
from model.transform import Transform, exact_canvas
from tests.parity.comparison import Answer

PUBLISHED = {
    "RESNET50_FPN": (published.fasterrcnn_resnet50_fpn, published.FasterRCNN_ResNet50_FPN_Weights.COCO_V1),
    "RESNET50_FPN_V2": (published.fasterrcnn_resnet50_fpn_v2, published.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
    "MOBILENET_V3_FPN": (
        published.fasterrcnn_mobilenet_v3_large_fpn,
        published.FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1,
    ),
    "MOBILENET_V3_320": (
        published.fasterrcnn_mobilenet_v3_large_320_fpn,
        published.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
    ),
}


def make_image(height: int, width: int, seed: int) -> ImageArray:
    """Make a uint8 RGB image [height, width, 3] with structure at several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells in (2, 5, 13, 40):
        coarse = torch.from_numpy(rng.normal(size=(1, 3, min(cells, height), min(cells, width))))
        fine = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        image += fine[0].permute(1, 2, 0).numpy()
    return np.asarray((image * 40 + 120).clip(0, 255), dtype=np.uint8)


def pair(
    preset: str,
    seed: int,
    *,
    sizes: tuple[int, int] | None = None,
    post_nms: int | None = None,
    num_classes: int = 91,
    old_keys: bool = False,
) -> tuple[Reference, FasterRCNN]:
    """torchvision's detector and ours with one state dict.

    sizes: (min_size, max_size) for both, the published ones by default; post_nms: proposals kept for both.
    old_keys: ours loads the state dict under the keys of torchvision before 0.14.
    """
    ours = find_preset(preset).with_classes(num_classes)
    if sizes is not None:
        ours = replace(ours, transform=replace(ours.transform, min_size=sizes[0], max_size=sizes[1]))
    if post_nms is not None:
        ours = replace(ours, rpn=replace(ours.rpn, post_nms=post_nms))
    reference = _reference(preset, seed, num_classes)
    _configure(reference, ours)
    with torch.random.fork_rng():
        model = FasterRCNN(ours).eval()
    state = reference.state_dict()
    checkpoint.load_into(model, to_old_keys(state) if old_keys else state)
    return reference, model


def to_old_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys that torchvision wrote before 0.14, where the RPN and the FPN had bare convolutions."""

    def old(key: str) -> str:
        if key.startswith("backbone.fpn."):
            return key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        return key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")

    return {old(key): value for key, value in state.items()}


def theirs(reference: Reference, images: Sequence[ImageArray]) -> list[Answer]:
    """What torchvision's detector finds, batched and padded as it does."""
    proposals: list[tuple[list[Tensor], list[Tensor]]] = []
    keep_proposals = reference.rpn.filter_proposals

    def spy(*arguments: object) -> tuple[list[Tensor], list[Tensor]]:
        proposals.append(keep_proposals(*arguments))
        return proposals[-1]

    tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
    with torch.inference_mode(), patch.object(reference.rpn, "filter_proposals", spy):
        answers = reference(tensors)
    boxes, scores = proposals[0]
    return [
        Answer(boxes[i], scores[i], answer["boxes"], answer["scores"], answer["labels"])
        for i, answer in enumerate(answers)
    ]


def batch_of(settings: DetectorConfig, images: Sequence[ImageArray]) -> ImageBatch:
    """The images on the smallest canvas that holds them all, as torchvision batches."""
    canvases = [exact_canvas(settings.transform, *image.shape[:2]) for image in images]
    canvas = (max(height for height, _ in canvases), max(width for _, width in canvases))
    return Transform(settings.transform)(images, canvas, torch.device("cpu"))


def ours(model: FasterRCNN, images: Sequence[ImageArray]) -> list[Answer]:
    """Return what our forward pass, the one that is served, answers in float32 on a canvas that holds all images."""
    batch = batch_of(model.config, images)
    head = model.config.roi_head
    options = ResolvedOptions(
        head.score_threshold, head.nms_threshold, head.max_detections, proposals=model.config.rpn.post_nms
    )
    classes = tuple(f"class {i}" for i in range(model.config.num_classes))
    forward_pass = ForwardPass(model, torch.float32, classes)
    with torch.inference_mode():
        per_image = forward_pass.detect(batch, [options] * len(images), StageTimer(torch.device("cpu")))
    answers = []
    for detections, size, original in zip(per_image, batch.sizes, batch.original_sizes, strict=True):
        assert detections is not None
        answers.append(answer_on_canvas(detections, size, original))
    return answers


def answer_on_canvas(detections: Detections, size: Tensor, original: Tensor) -> Answer:
    """Return our detections as torchvision gives its own: proposals in canvas pixels, detections in the image's.

    size, original: (height, width) of the image on the canvas and as given.
    """
    proposals = detections.proposals
    assert proposals is not None
    return Answer(
        box_ops.rescale(proposals.boxes, original, size),
        proposals.objectness,
        detections.boxes,
        detections.scores,
        detections.class_ids,
    )


@lru_cache(maxsize=2)
def _reference(preset: str, seed: int, num_classes: int) -> Reference:
    function, weights = PUBLISHED[preset]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = _random_state(function(weights=None, weights_backbone=None))
        with patch.object(WeightsEnum, "get_state_dict", lambda *_, **__: state):
            model = function(weights=weights).eval()
        if num_classes != 91:
            # torchvision's own recipe for another number of classes
            model.roi_heads.box_predictor = FastRCNNPredictor(1024, num_classes)
        _enliven(model, find_preset(preset))
    return model


def _random_state(model: Reference) -> dict[str, Tensor]:
    """A state dict whose norms keep the signal alive: their statistics are those of a image passing through."""
    # Random residual branches at full strength double a rounding error each; trained ones do not. So each one's last
    # norm is weakened.
    branches = [module.bn3 for module in model.modules() if isinstance(module, Bottleneck)]
    branches += [m.block[-1][1] for m in model.modules() if isinstance(m, InvertedResidual) and m.use_res_connect]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over what has been seen, which is this image
            module.reset_running_stats()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            if any(module is branch for branch in branches):
                module.weight.data *= 0.3
    pixels = torch.from_numpy(make_image(512, 640, seed=98)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        model.backbone.train()((pixels - 120) / 60)
        # The box head's norms, in v2, see what is pooled: about the pyramid's own spread.
        model.roi_heads.box_head.train()(torch.randn(16, 256, 7, 7))
    state: dict[str, Tensor] = model.eval().state_dict()
    return state


def _enliven(model: Reference, settings: DetectorConfig) -> None:
    """Scale the predicting layers so that what they predict on a image is spread as trained ones' is."""
    # Small, and few proposals: enough to measure by.
    few = replace(settings.rpn, post_nms=100)
    _configure(model, replace(settings, transform=TransformConfig(256, 448), rpn=few))
    predictor = model.roi_heads.box_predictor
    image = make_image(240, 320, seed=99)
    for layers, spreads in (
        ((model.rpn.head.cls_logits, model.rpn.head.bbox_pred), (2.0, 0.2)),
        ((predictor.cls_score, predictor.bbox_pred), (1.0, 0.3)),
    ):
        for layer, spread, seen in zip(layers, spreads, _outputs(model, layers, image), strict=True):
            # Of a layer's outputs, what differs between places: a constant would only shift them all.
            axes = [0, 2, 3] if seen.dim() == 4 else [0]
            mean = seen.mean(dim=axes, keepdim=True)
            factor = spread / float((seen - mean).std())
            bias = layer.bias
            assert isinstance(bias, Tensor)
            layer.weight.data *= factor
            # weight * x + bias had this mean; it shall be 0
            bias.data = (bias.data - mean.flatten()) * factor
    # Background's bias decides how many regions pass: as many as give tens of boxes after NMS.
    (logits,) = _outputs(model, (predictor.cls_score,), image)
    # More of them in v2, of which the quick tests keep few proposals.
    target = 60 if settings.roi_head.conv_channels else 25
    low, high = -20.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        shifted = logits.clone()
        shifted[:, 0] += middle
        passing = int((shifted.softmax(dim=1)[:, 1:] > 0.05).sum())
        low, high = (middle, high) if passing > target else (low, middle)
    predictor.cls_score.bias.data[0] += high


def _outputs(model: Reference, layers: Sequence[nn.Module], image: ImageArray) -> list[Tensor]:
    """What each layer gives on the image: of the RPN's maps the finest."""
    seen: list[list[Tensor]] = [[] for _ in layers]
    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output, kept=kept: kept.append(output.detach().clone()))
        for layer, kept in zip(layers, seen, strict=True)
    ]
    theirs(model, [image])
    for handle in handles:
        handle.remove()
    return [kept[0] for kept in seen]


def _configure(reference: Reference, settings: DetectorConfig) -> None:
    """Give torchvision's detector our sizes and counts, and the strides that its pyramid has.

    It would infer those from its first image, wrongly if that is thin, and keep them.
    """
    reference.transform.min_size = (settings.transform.min_size,)
    reference.transform.max_size = settings.transform.max_size
    reference.rpn._post_nms_top_n["testing"] = settings.rpn.post_nms
    pooler, scales = reference.roi_heads.box_roi_pool, settings.roi_head.scales
    pooler.scales = list(scales)
    pooler.map_levels = initLevelMapper(*(round(-math.log2(scale)) for scale in (scales[0], scales[-1])))
