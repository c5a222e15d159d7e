"""The twenty traps of rewriting Faster R-CNN, one named test each, against torchvision's own parts where it has them.

Where detectors differ, the house follows torchvision, whose checkpoints it loads: pixels are not counted inclusively,
base anchors are rounded, strides are inferred for anchors but never for pooling.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, nms
from torchvision.ops.boxes import _batched_nms_coordinate_trick

from model import anchors as anchor_grid
from model import boxes as box_ops
from model import nms as suppression
from model.backbones import build_backbone
from model.config import (
    LITE,
    MOBILENET_V3_320,
    MOBILENET_V3_FPN,
    PRESETS,
    RESNET50_FPN,
    RESNET50_FPN_V2,
    AnchorConfig,
    RPNConfig,
)
from model.detector import DetectOptions, Detector
from model.rpn import RPN, Candidates
from model.training.losses import roi_losses, rpn_losses
from model.training.targets import Truth, anchor_targets, region_targets
from model.transform import Transform, resized_size

CPU = torch.device("cpu")
# The maps of an 800 x 1344 canvas under ResNet-50's pyramid.
CANVAS = (800, 1344)
MAPS = ((200, 336), (100, 168), (50, 84), (25, 42), (13, 21))


def boxes_at_random(count: int, side: float, seed: int = 0) -> Tensor:
    """float32 [count, 4] within a square of ``side`` pixels."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * side
    return torch.cat((corners.amin(dim=1), corners.amax(dim=1)), dim=1)


def candidates_of(
    config: RPNConfig, scores: list[list[float]], boxes: list[list[list[float]]]
) -> tuple[RPN, Candidates]:
    """An RPN over as many levels as there are lists, whose anchors are the boxes and whose offsets are nought."""
    anchors = AnchorConfig(sizes=((16.0,),) * len(scores), ratios=(1.0,))
    rpn = RPN(4, anchors, config).eval()
    grid = torch.tensor([box for level in boxes for box in level])
    logits = torch.tensor([[score for level in scores for score in level]])
    counts = [len(level) for level in scores]
    return rpn, rpn.select_candidates(logits, torch.zeros(1, len(grid), 4), grid, counts, torch.tensor([[100, 100]]))


def test_trap_01_pixels_are_not_counted_inclusively() -> None:
    assert box_ops.area(torch.tensor([[0.0, 0.0, 1.0, 1.0]])).item() == 1.0  # PFR: 4
    assert box_ops.clip(torch.tensor([[0.0, 0.0, 200.0, 200.0]]), 100, 100).tolist() == [[0, 0, 100, 100]]  # PFR: 99
    anchor, box = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[5.0, 5.0, 15.0, 15.0]])
    assert box_ops.encode(box, anchor).tolist() == [[0.5, 0.5, 0.0, 0.0]]


def test_trap_02_torchvisions_base_anchors_are_rounded_and_our_own_are_not() -> None:
    assert anchor_grid.base_anchors((32.0,), (0.5,), rounded=True).tolist() == [[-23, -11, 23, 11]]
    exact = anchor_grid.base_anchors((32.0,), (0.5,), rounded=False)
    torch.testing.assert_close(exact, torch.tensor([[-22.6274, -11.3137, 22.6274, 11.3137]]))
    assert [preset.anchors.rounded for preset in PRESETS if preset.name == "LITE"] == [False]


@pytest.mark.parametrize("preset", [RESNET50_FPN, MOBILENET_V3_FPN], ids=lambda preset: preset.name)
def test_trap_03_anchors_of_a_cell_are_ratio_major(preset: object) -> None:
    config = preset.anchors  # type: ignore[attr-defined]
    maps = MAPS if config is RESNET50_FPN.anchors else ((25, 42), (25, 42), (13, 21))
    theirs = AnchorGenerator(config.sizes, (config.ratios,) * len(config.sizes))
    images = ImageList(torch.zeros(1, 3, *CANVAS), [CANVAS])
    (expected,) = theirs(images, [torch.zeros(1, 1, *shape) for shape in maps])
    found = anchor_grid.grid_anchors(config, CANVAS, maps, CPU)
    assert len(found) == len(expected)
    assert torch.equal(found, expected)
    first = found[: config.per_cell]
    ratios = (first[:, 3] - first[:, 1]) / (first[:, 2] - first[:, 0])
    assert bool((ratios.diff() > -0.2).all()), "all sizes of the widest ratio first"


def test_trap_04_the_stride_is_the_canvas_over_the_map() -> None:
    strides = anchor_grid.level_strides(RESNET50_FPN.anchors, CANVAS, MAPS)
    assert strides == ((4, 4), (8, 8), (16, 16), (32, 32), (61, 64))
    assert anchor_grid.level_strides(LITE.anchors, (384, 384), ((48, 48), (24, 24), (12, 12))) == (
        (8, 8),
        (16, 16),
        (32, 32),
    )


def test_trap_07_frozen_norms_have_no_epsilon_in_resnet50_v1_alone() -> None:
    for preset, eps in (
        (RESNET50_FPN, 0.0),
        (RESNET50_FPN_V2, 1e-5),
        (MOBILENET_V3_FPN, 1e-5),
        (MOBILENET_V3_320, 1e-5),
    ):
        with torch.device("meta"):
            backbone, _ = build_backbone(preset)
        norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d)]
        assert {norm.eps for norm in norms} == {eps}
        assert all(isinstance(norm, nn.BatchNorm2d) for norm in norms) == (preset is RESNET50_FPN_V2)


def test_trap_08_growth_is_clamped_from_above_only() -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = box_ops.decode(torch.tensor([[0.0, 0.0, 99.0, 99.0]]), anchor)
    torch.testing.assert_close(grown[:, 2:] - grown[:, :2], torch.tensor([[1000.0, 1000.0]]))
    shrunk = box_ops.decode(torch.tensor([[0.0, 0.0, -9.0, -9.0]]), anchor)
    torch.testing.assert_close(shrunk[0, 2] - shrunk[0, 0], torch.tensor(16 * math.exp(-9)), rtol=1e-2, atol=1e-6)


def test_nms_drops_an_overlap_above_its_threshold_and_not_one_equal_to_it() -> None:
    half = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])
    assert suppression.nms(half, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert suppression.nms(half, torch.tensor([0.9, 0.8]), 0.4999).tolist() == [0]


def test_nms_orders_equal_scores_by_index() -> None:
    apart = torch.tensor([[20.0 * i, 0.0, 20.0 * i + 9, 9.0] for i in range(200)])
    scores = torch.full((200,), 0.5)
    assert suppression.nms(apart, scores, 0.5).tolist() == list(range(200))
    groups = torch.arange(200) % 3
    assert suppression.grouped_nms(apart, scores, groups, 0.5).tolist() == list(range(200))


def test_trap_12_nms_within_groups_does_not_shift_coordinates() -> None:
    # Overlaps of 0.7 less a hair: kept. Shifted by a group's offset of some 1e5, a coordinate loses a hair's digits.
    first = torch.tensor([0.0, 0.0, 100.0, 100.0])
    pairs = []
    for i in range(400):
        second = first.clone()
        second[2] = 70.0 - 1e-4 + i * 5e-7
        pairs.append(torch.stack((first, second)))
    far = torch.tensor([[0.0, 0.0, 1.2e5, 1.0]])
    flipped = 0
    for pair in pairs:
        boxes, scores, groups = torch.cat((pair, far)), torch.tensor([0.9, 0.8, 0.1]), torch.tensor([7, 7, 0])
        alone = 2 - len(nms(pair, scores[:2], 0.7))
        found = suppression.grouped_nms(boxes, scores, groups, 0.7)
        assert 3 - len(found) == alone
        flipped += 3 - len(_batched_nms_coordinate_trick(boxes, scores, groups, 0.7)) != alone
    assert flipped, "torchvision's, which we avoid"


def test_trap_13_anchors_decoding_and_nms_stay_in_float32() -> None:
    grid = anchor_grid.grid_anchors(RESNET50_FPN.anchors, CANVAS, MAPS, CPU)
    assert grid.dtype == torch.float32
    assert float((grid.bfloat16().float() - grid).abs().max()) > 2, "what bf16 would do"
    rpn = RPN(4, RESNET50_FPN.anchors, RESNET50_FPN.rpn).eval()
    counts = [3 * rows * columns for rows, columns in MAPS]
    logits = torch.randn(1, len(grid)).bfloat16()
    found = rpn.select_candidates(logits, torch.zeros(1, len(grid), 4).bfloat16(), grid, counts, torch.tensor([CANVAS]))
    assert found.boxes.dtype == found.logits.dtype == torch.float32
    torch.testing.assert_close(found.boxes, box_ops.clip(grid[found.anchor_indices], *CANVAS), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(480, 640), (375, 500), (700, 1100), (33, 47), (2000, 300)])
def test_trap_17_resizing_floors_does_not_low_pass_and_returns_by_two_ratios(size: tuple[int, int]) -> None:
    transform = Transform(RESNET50_FPN.transform)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = GeneralizedRCNNTransform(800, 1333, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()
    expected, _ = theirs([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    resized = resized_size(RESNET50_FPN.transform, *size)
    assert resized == expected.image_sizes[0]
    found = transform([image], tuple(expected.tensors.shape[2:]), CPU)
    torch.testing.assert_close(found.pixels, expected.tensors, rtol=1e-4, atol=1e-4)
    corner = torch.tensor([[0.0, 0.0, float(resized[1]), float(resized[0])]])
    back = box_ops.rescale(corner, found.sizes[0], found.original_sizes[0])
    torch.testing.assert_close(back, torch.tensor([[0.0, 0.0, float(size[1]), float(size[0])]]))


def test_trap_18_a_batch_mate_changes_nothing() -> None:
    detector = Detector.random("LITE", device="cpu", precision="fp32")
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((80, 100, 3), (300, 400, 3)))
    canvas = detector.canvas_for(80, 100)
    assert canvas == detector.canvas_for(80, 100)
    alone = detector.transform([small], canvas, CPU)
    beside = detector.transform([small, small.copy()], canvas, CPU)
    assert torch.equal(alone.pixels[0], beside.pixels[0])
    height, width = alone.sizes[0].tolist()
    assert not alone.pixels[0, :, height:].any(), "padding is nought to the network: normalised before, padded after"
    assert not alone.pixels[0, :, :, width:].any()
    options = DetectOptions(proposals=20)
    (one,) = detector.detect([small], options)
    both = detector.detect([large, small], options)
    assert one.proposals is not None
    assert both[1].proposals is not None
    torch.testing.assert_close(one.proposals.boxes, both[1].proposals.boxes, rtol=1e-4, atol=1e-2)


def test_an_image_without_ground_truth_trains_on_background_alone() -> None:
    config, generator = RESNET50_FPN.train, torch.Generator().manual_seed(0)
    truth = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (100, 100))
    anchors = boxes_at_random(600, 100)
    target = anchor_targets(anchors, truth, config, generator)
    assert (len(target.positives), len(target.background)) == (0, config.rpn_batch)
    regions = region_targets(boxes_at_random(600, 100), truth, config, (10.0, 10.0, 5.0, 5.0), generator)
    assert regions.class_ids.tolist() == [0] * config.roi_batch
    nothing = region_targets(torch.zeros(0, 4), truth, config, (10.0, 10.0, 5.0, 5.0), generator)
    losses = [
        *rpn_losses(torch.zeros(1, 600), torch.zeros(1, 600, 4), [target], config.rpn_beta),
        *roi_losses(torch.zeros(config.roi_batch, 3), torch.zeros(config.roi_batch, 3, 4), [regions], config.roi_beta),
        *roi_losses(torch.zeros(0, 3), torch.zeros(0, 3, 4), [nothing], config.roi_beta),
    ]
    expected = [math.log(2), 0.0, math.log(3), 0.0, 0.0, 0.0]
    assert [loss.item() for loss in losses] == pytest.approx(expected)
