"""torchvision's published detectors with random weights, and this project's with the same state dict.

The reference is built by torchvision's own public functions as for its published weights (frozen norms, their
epsilon), but the download is replaced by a random state dict. Random weights score all anchors and classes nearly
equally, so the four predicting layers are scaled until objectness spreads and tens of boxes pass the thresholds.
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


def make_pair(
    preset: str,
    seed: int,
    *,
    sizes: tuple[int, int] | None = None,
    post_nms: int | None = None,
    num_classes: int = 91,
    old_keys: bool = False,
) -> tuple[Reference, FasterRCNN]:
    """Make torchvision's detector and this project's with the same state dict.

    sizes: (min_size, max_size) for both, the published ones by default; post_nms: proposals kept for both.
    old_keys: this project's loads the state dict under the keys of torchvision before 0.14.
    """
    settings = find_preset(preset).with_classes(num_classes)
    if sizes is not None:
        settings = replace(settings, transform=replace(settings.transform, min_size=sizes[0], max_size=sizes[1]))
    if post_nms is not None:
        settings = replace(settings, rpn=replace(settings.rpn, post_nms=post_nms))
    reference = _reference(preset, seed, num_classes)
    _configure(reference, settings)
    with torch.random.fork_rng():
        model = FasterRCNN(settings).eval()
    state = reference.state_dict()
    checkpoint.load_into(model, to_old_keys(state) if old_keys else state)
    return reference, model


def to_old_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the keys that torchvision wrote before 0.14, when RPN and FPN had bare convolutions."""

    def old(key: str) -> str:
        if key.startswith("backbone.fpn."):
            return key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        return key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")

    return {old(key): value for key, value in state.items()}


def run_torchvision(reference: Reference, images: Sequence[ImageArray]) -> list[Answer]:
    """Return the answers of torchvision's detector, which batches and pads the images itself."""
    proposals: list[tuple[list[Tensor], list[Tensor]]] = []
    filter_proposals = reference.rpn.filter_proposals

    def record(*arguments: object) -> tuple[list[Tensor], list[Tensor]]:
        proposals.append(filter_proposals(*arguments))
        return proposals[-1]

    tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
    with torch.inference_mode(), patch.object(reference.rpn, "filter_proposals", record):
        answers = reference(tensors)
    boxes, scores = proposals[0]
    return [
        Answer(boxes[i], scores[i], answer["boxes"], answer["scores"], answer["labels"])
        for i, answer in enumerate(answers)
    ]


def make_batch(settings: DetectorConfig, images: Sequence[ImageArray]) -> ImageBatch:
    """Transform the images to the smallest canvas that holds them all, as torchvision batches."""
    canvases = [exact_canvas(settings.transform, *image.shape[:2]) for image in images]
    canvas = (max(height for height, _ in canvases), max(width for _, width in canvases))
    return Transform(settings.transform)(images, canvas, torch.device("cpu"))


def run_model(model: FasterRCNN, images: Sequence[ImageArray]) -> list[Answer]:
    """Return the answers of the forward pass that is served, in float32 on a canvas that holds all images."""
    batch = make_batch(model.config, images)
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
    """Return detections as torchvision gives them: proposals in canvas pixels, detections in the image's.

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
        _spread_predictions(model, find_preset(preset))
    return model


def _random_state(model: Reference) -> dict[str, Tensor]:
    """Return a state dict with random norms; their statistics are an image's, so that no layer's output vanishes."""
    # Each random residual branch would double rounding errors, as trained ones do not: its last norm is weakened.
    branches = [module.bn3 for module in model.modules() if isinstance(module, Bottleneck)]
    branches += [m.block[-1][1] for m in model.modules() if isinstance(m, InvertedResidual) and m.use_res_connect]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches, of which there is one
            module.reset_running_stats()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            if any(module is branch for branch in branches):
                module.weight.data *= 0.3
    pixels = torch.from_numpy(make_image(512, 640, seed=98)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        model.backbone.train()((pixels - 120) / 60)
        # The input of the box head's norms, in v2, is spread about as the pyramid's maps.
        model.roi_heads.box_head.train()(torch.randn(16, 256, 7, 7))
    state: dict[str, Tensor] = model.eval().state_dict()
    return state


def _spread_predictions(model: Reference, settings: DetectorConfig) -> None:
    """Scale the predicting layers so that their outputs on an image are spread as those of trained ones."""
    # A small image and few proposals suffice to measure the spread.
    few = replace(settings.rpn, post_nms=100)
    _configure(model, replace(settings, transform=TransformConfig(256, 448), rpn=few))
    predictor = model.roi_heads.box_predictor
    image = make_image(240, 320, seed=99)
    for layers, spreads in (
        ((model.rpn.head.cls_logits, model.rpn.head.bbox_pred), (2.0, 0.2)),
        ((predictor.cls_score, predictor.bbox_pred), (1.0, 0.3)),
    ):
        for layer, spread, output in zip(layers, spreads, _outputs(model, layers, image), strict=True):
            # The spread is measured around the mean over positions: a constant would only shift all outputs.
            axes = [0, 2, 3] if output.dim() == 4 else [0]
            mean = output.mean(dim=axes, keepdim=True)
            factor = spread / float((output - mean).std())
            bias = layer.bias
            assert isinstance(bias, Tensor)
            layer.weight.data *= factor
            # The mean of weight * x + bias becomes 0.
            bias.data = (bias.data - mean.flatten()) * factor
    # The background's bias is chosen so that as many regions pass as give tens of boxes after NMS.
    (logits,) = _outputs(model, (predictor.cls_score,), image)
    # More in v2, for which the fast tests keep few proposals.
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
    """Return each layer's output for the image; of the RPN's layers that for the finest map."""
    outputs: list[list[Tensor]] = [[] for _ in layers]
    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output, kept=kept: kept.append(output.detach().clone()))
        for layer, kept in zip(layers, outputs, strict=True)
    ]
    run_torchvision(model, [image])
    for handle in handles:
        handle.remove()
    return [kept[0] for kept in outputs]


def _configure(reference: Reference, settings: DetectorConfig) -> None:
    """Give torchvision's detector the sizes and counts of ``settings``, and the strides that its pyramid has.

    It would infer the strides from its first image, wrongly if that is thin, and keep them.
    """
    reference.transform.min_size = (settings.transform.min_size,)
    reference.transform.max_size = settings.transform.max_size
    reference.rpn._post_nms_top_n["testing"] = settings.rpn.post_nms
    pooler, scales = reference.roi_heads.box_roi_pool, settings.roi_head.scales
    pooler.scales = list(scales)
    pooler.map_levels = initLevelMapper(*(round(-math.log2(scale)) for scale in (scales[0], scales[-1])))
