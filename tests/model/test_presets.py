"""The presets: found by name, and the numbers of PAPER_VGG16 against the paper and py-faster-rcnn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from model import anchors, checkpoint
from model.detector import DetectOptions, Detector
from model.faster_rcnn import FasterRCNN
from model.presets import PAPER_VGG16, PRESETS, find_preset
from model.structures import ImageBatch
from model.training.losses import joint_losses
from model.training.targets import Truth


def test_twenty_thousand_anchors_on_an_image_of_the_papers_size() -> None:
    # arXiv 1506.01497, section 3.1.3: a 1000 x 600 image has roughly 20,000 anchors.
    grid = anchors.grid_anchors(PAPER_VGG16.anchors, (608, 1008), ((38, 63),), torch.device("cpu"))
    assert len(grid) == 9 * 38 * 63 == 21546
    shift = grid[9 * (63 + 2)] - grid[0]
    assert shift.tolist() == [32, 16, 32, 16]


def test_the_papers_network_has_137_078_239_parameters() -> None:
    with torch.device("meta"):
        model = FasterRCNN(PAPER_VGG16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 137_078_239


def test_layers_have_the_papers_shapes() -> None:
    with torch.device("meta"):
        state = FasterRCNN(PAPER_VGG16).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert shapes["backbone.body.features.28.weight"] == (512, 512, 3, 3)  # conv5_3
    assert shapes["rpn.head.conv.0.0.weight"] == (512, 512, 3, 3)
    assert shapes["rpn.head.cls_logits.weight"] == (18, 512, 1, 1)  # 2k
    assert shapes["rpn.head.bbox_pred.weight"] == (36, 512, 1, 1)  # 4k
    assert shapes["roi_heads.box_head.fc6.weight"] == (4096, 512 * 7 * 7)
    assert shapes["roi_heads.box_head.fc7.weight"] == (4096, 4096)
    assert shapes["roi_heads.box_predictor.cls_score.weight"] == (21, 4096)
    assert shapes["roi_heads.box_predictor.bbox_pred.weight"] == (84, 4096)
    assert len(shapes) == 2 * (13 + 3 + 4)


def test_constants_of_the_test_configuration() -> None:
    transform, rpn, head = PAPER_VGG16.transform, PAPER_VGG16.rpn, PAPER_VGG16.roi_head
    assert (transform.min_size, transform.max_size) == (600, 1000)  # arXiv 1506.01497, section 3.3
    means = [255 * mean for mean in reversed(transform.mean)]
    assert means == pytest.approx([102.9801, 115.9465, 122.7717])  # py-faster-rcnn's config PIXEL_MEANS, blue first
    assert (transform.bgr, {round(255 * std, 9) for std in transform.std}) == (True, {1.0})
    assert (rpn.pre_nms, rpn.nms_threshold, rpn.post_nms) == (6000, 0.7, 300)  # py-faster-rcnn's config TEST.RPN_*
    assert (rpn.pre_nms_train, rpn.post_nms_train) == (12000, 2000)  # its config TRAIN.RPN_*
    assert (rpn.min_size, rpn.scale_min_size) == (16, True)
    assert (head.pool, head.resolution, head.scales) == ("max", 7, (1 / 16,))
    assert (head.score_threshold, head.nms_threshold, head.max_detections) == (0.05, 0.3, 100)  # its config and test.py
    deviations = tuple(1 / weight for weight in head.box_weights)
    assert deviations == pytest.approx((0.1, 0.1, 0.2, 0.2))  # its config BBOX_NORMALIZE_STDS


def test_constants_of_training() -> None:
    train = PAPER_VGG16.sampling
    # arXiv 1506.01497, sections 3.1.2 and 3.1.3.
    assert (train.rpn_positive_iou, train.rpn_negative_iou, train.cross_boundary) == (0.7, 0.3, False)
    assert (train.rpn_batch, train.rpn_positive_fraction, train.rpn_beta) == (256, 0.5, 1 / 9)
    assert (train.roi_batch, train.roi_positive_fraction, train.roi_positive_iou) == (128, 0.25, 0.5)
    assert train.roi_beta == 1.0
    assert PAPER_VGG16.roi_head.dropout == 0.5


def test_new_layers_are_initialised_as_in_the_paper() -> None:
    # arXiv 1506.01497, section 3.1.3: N(0, 0.01); py-faster-rcnn's prototxt has 0.001 for the detector's offsets. The
    # fully connected layers are narrow, so that the test is fast.
    model = FasterRCNN(replace(PAPER_VGG16, roi_head=replace(PAPER_VGG16.roi_head, fc_channels=(64, 512))))
    expected = {
        "rpn.head.conv.0.0": 0.01,
        "rpn.head.cls_logits": 0.01,
        "rpn.head.bbox_pred": 0.01,
        "roi_heads.box_predictor.cls_score": 0.01,
        "roi_heads.box_predictor.bbox_pred": 0.001,
    }
    for name, deviation in expected.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = layer.weight.detach()
        assert float(weight.std()) == pytest.approx(deviation, rel=0.05)
        assert float(weight.mean()) == pytest.approx(0, abs=deviation / 10)
        assert layer.bias is not None
        assert not layer.bias.detach().any()


def _small() -> tuple[FasterRCNN, checkpoint.ResolvedCheckpoint]:
    """Make the paper's network at a quarter of the size and with narrow fully connected layers, and its checkpoint."""
    config = replace(
        PAPER_VGG16,
        transform=replace(PAPER_VGG16.transform, min_size=150, max_size=250),
        roi_head=replace(PAPER_VGG16.roi_head, fc_channels=(64, 64)),
    )
    names = ("__background__", *(f"class {i}" for i in range(1, 21)))
    resolved = checkpoint.ResolvedCheckpoint(name="random", path=checkpoint.weights_dir(), preset=None, classes=names)
    return FasterRCNN(config), resolved


def test_proposals_and_detections_of_the_papers_network_lie_in_the_image() -> None:
    detector = Detector(*_small(), device="cpu", precision="fp32", canvas="exact")
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    (detections,) = detector.detect([image], DetectOptions(score_threshold=0.0, proposals=1000))
    assert 0 < len(detections) <= 100
    assert detections.proposals is not None
    assert 0 < len(detections.proposals) <= 300
    boxes = detections.proposals.boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    assert float(sides.min()) >= 16 * 0.99, "16 pixels of the original image (py-faster-rcnn: 16 x scale on the canvas)"
    assert bool((boxes >= 0).all())
    assert bool((boxes[:, 2] <= 400.01).all())
    assert bool((boxes[:, 3] <= 300.01).all())


def test_the_four_losses_of_one_image_worked_out_by_hand() -> None:
    # All weights are 0, so that every output is its bias; a box on one anchor, in an image of 13 x 13 cells.
    size, box = (208, 208), (8.0, 8.0, 136.0, 136.0)  # the square 128 anchor of the cell at (64, 64)
    model, _ = _small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        head, predictor = model.rpn.head, model.roi_heads.box_predictor
        head.cls_logits.bias[:9] = math.log(1 / 4)  # the background logits of all anchors come first
        head.cls_logits.bias[9:] = math.log(3 / 4)
        # Proposals shrink to nothing and are dropped, but for the square 512 anchors': the whole image, once.
        shrink = torch.tensor([0.0, 0.0, -5.0, -5.0]).repeat(9, 1)
        shrink[5] = 0
        head.bbox_pred.bias.copy_(shrink.flatten())
        predictor.cls_score.bias[0] = math.log(10)  # background 10 of 30, every other class 1 of 30
        predictor.bbox_pred.bias.copy_(torch.tensor([2.0, 0.5, 0.0, 0.0]).repeat(21))
    sizes = torch.tensor([size])
    truth = Truth(torch.tensor([box]), torch.tensor([7]), torch.zeros(0, 4), size)
    batch = ImageBatch(torch.zeros(1, 3, *size), sizes, sizes)
    with torch.no_grad():
        losses = joint_losses(model.train(), batch, [truth], [torch.Generator().manual_seed(0)])

    # 53 anchors lie inside the image: 25 square ones, 7 wide, 21 tall, all of area 128 x 128.
    # Object: the anchor itself, and the two 16 pixels to the right and below, whose IoU is 112 / 144 = 0.78.
    # Background, IoU < 0.3: 8 square, 2 wide (64 and 80 pixels below the box's top) and 8 tall. The rest is left out.
    object_, background = 3, 18
    sampled = object_ + background
    assert float(losses.objectness) == pytest.approx(
        (object_ * math.log(4 / 3) + background * math.log(4)) / sampled, rel=1e-5
    )
    # tw and th are 5 off for each of the three; tx or ty by 16 / 128 for two. Smooth L1 with beta 1/9: |d| - 1/18.
    offsets = 3 * 2 * (5 - 1 / 18) + 2 * (16 / 128 - 1 / 18)
    assert float(losses.rpn_box) == pytest.approx(offsets / sampled, rel=1e-5)
    # Two regions: the ground truth, which is added to the proposals, and the whole image, IoU 0.38: background.
    assert float(losses.classes) == pytest.approx((math.log(30) + math.log(3)) / 2, rel=1e-5)
    # The ground truth's own offsets are 0. Smooth L1 with beta 1: |d| - 1/2 beyond 1, d^2 / 2 within.
    assert float(losses.roi_box) == pytest.approx((1.5 + 0.125) / 2, rel=1e-5)
    assert float(losses.total()) == pytest.approx(sum(map(float, losses)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_papers_network_detects_in_both_precisions(precision: str) -> None:
    detector = Detector(*_small(), device="cpu", precision=precision, canvas="exact")
    (detections,) = detector.detect([np.full((120, 160, 3), 90, np.uint8)], DetectOptions(score_threshold=0.0))
    assert len(detections)
    assert torch.isfinite(detections.boxes).all()


@pytest.mark.slow
def test_the_imagenet_weights_of_vgg16_fit_the_papers_network() -> None:
    # All 138 million numbers of torchvision's classifier are loaded, and only the layers below are missing.
    state = torchvision.models.vgg16(weights=None, init_weights=False).state_dict()
    for value in state.values():
        value.fill_(0.001)
    model = FasterRCNN(PAPER_VGG16)
    missing = checkpoint.load_into(model, checkpoint.from_imagenet(state, PAPER_VGG16), partial=True)
    assert {key.rsplit(".", 1)[0] for key in missing} == {
        "rpn.head.conv.0.0",
        "rpn.head.cls_logits",
        "rpn.head.bbox_pred",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
    }


def test_presets_are_found_by_name() -> None:
    assert [find_preset(preset.name) for preset in PRESETS] == list(PRESETS)
    with pytest.raises(ValueError, match="No preset 'VGG': one of PAPER_VGG16, RESNET50_FPN, "):
        find_preset("VGG")
