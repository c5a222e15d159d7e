"""The Fast R-CNN detector: pooled levels, and detections from scores and offsets."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from model import boxes as box_ops
from model.backbones import build_backbone
from model.config import RoIHeadConfig
from model.presets import LITE, MOBILENET_V3_320, PAPER_VGG16, RESNET50_FPN
from model.roi_head import BatchDetections, RoIHead, stack_regions
from tests.model.random_boxes import random_boxes


def _head(num_classes: int = 3, config: RoIHeadConfig = LITE.roi_head) -> RoIHead:
    return RoIHead(4, num_classes, replace(config, fc_channels=(8,))).eval()


def _postprocess(
    head: RoIHead,
    logits: Tensor,
    boxes: Tensor,
    offsets: Tensor | None = None,
    *,
    score_threshold: float = 0.05,
    class_mask: Tensor | None = None,
) -> BatchDetections:
    """Return the detections of one image of 50 x 50 pixels; boxes are not moved where no offsets are given."""
    return head.postprocess(
        logits,
        torch.zeros(len(boxes), logits.shape[1], 4) if offsets is None else offsets,
        stack_regions([boxes]),
        torch.tensor([[50, 50]]),
        torch.tensor([score_threshold]),
        [0.5],
        None if class_mask is None else class_mask[None],
    )


def _logits(*rows: tuple[float, ...]) -> torch.Tensor:
    """Return class probabilities as logits [R, classes]."""
    return torch.log(torch.tensor(rows))


def _square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y + side]


def test_a_region_is_pooled_from_the_level_of_its_size() -> None:
    # FPN eq. 1 with k0 = 4 at 224: 112 is level 3 of the pyramid's 2 to 5, so position 1.
    head = RoIHead(4, 3, replace(RESNET50_FPN.roi_head, fc_channels=(8,)))
    sides = [1.0, 111.0, 112.0, 223.9, 224.0, 448.0, 4000.0]
    levels = head.assign_levels(torch.tensor([_square(0, 0, side) for side in sides]))
    assert levels.tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_the_level_of_a_region_is_torchvisions_also_at_the_border_of_two_levels() -> None:
    # Without 1e-6 added after the logarithm, rounding moves a side on the border a level down.
    head = RoIHead(4, 2, RESNET50_FPN.roi_head)
    sides = torch.cat([torch.tensor(112.0 * 2**k) + torch.linspace(-2e-4, 2e-4, 101) for k in range(4)])
    boxes = torch.stack((torch.zeros_like(sides), torch.zeros_like(sides), sides, sides), dim=1)
    boxes = torch.cat((boxes, boxes + 0.1, random_boxes(1000, 1300)))
    assert torch.equal(head.assign_levels(boxes), LevelMapper(2, 5)([boxes]))
    assert head.assign_levels(torch.tensor([[0.0, 0.0, 224.0, 223.9999]])).item() == 2


def test_a_region_without_area_is_pooled_from_the_finest_level() -> None:
    assert _head().assign_levels(torch.tensor([[5.0, 5.0, 5.0, 9.0]])).tolist() == [0]


def test_the_paper_pools_maxima_from_its_only_map() -> None:
    head = RoIHead(4, 3, replace(PAPER_VGG16.roi_head, fc_channels=(8,)))
    level = torch.zeros(1, 4, 10, 10)
    level[0, 2, 5, 5] = 7.0
    pooled = head.pool([level], torch.tensor([[0.0, 0.0, 0.0, 159.0, 159.0]]))
    assert pooled.shape == (1, 4, 7, 7)
    assert pooled[0, 2].max() == 7.0


def test_the_scales_of_pooling_are_fixed_whatever_image_came_first() -> None:
    # torchvision infers them from its first image and keeps them, wrongly where that image is thin.
    thin, normal = (13, 1333), (800, 1088)

    def maps_of(size: tuple[int, int]) -> list[Tensor]:
        canvas = [-(-side // 32) * 32 for side in size]
        return [torch.randn(1, 4, *(side // stride for side in canvas)) for stride in (4, 8, 16, 32)]

    head = RoIHead(4, 2, RESNET50_FPN.roi_head).eval()
    boxes = random_boxes(50, 700)
    regions = stack_regions([boxes])
    first, second = maps_of(thin), maps_of(normal)
    before = head.pool(second, regions)
    head.pool(first, stack_regions([box_ops.clip(boxes, *thin)]))
    assert torch.equal(head.pool(second, regions), before)

    def pool_as_torchvision(pooler: MultiScaleRoIAlign, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        pooled: Tensor = pooler({str(i): level for i, level in enumerate(maps)}, [boxes], [size])
        return pooled

    correct, wrong = (MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2) for _ in range(2))
    torch.testing.assert_close(before, pool_as_torchvision(correct, second, normal), rtol=1e-4, atol=1e-4)
    pool_as_torchvision(wrong, first, thin)
    assert not torch.allclose(pool_as_torchvision(wrong, second, normal), before, atol=1e-2)


def test_mobilenets_second_map_is_never_pooled() -> None:
    # In torchvision's MobileNetV3 detector the first two maps both have stride 32, and pooling skips the second.
    backbone, channels = build_backbone(MOBILENET_V3_320)
    with torch.inference_mode():
        maps = backbone.eval()(torch.randn(1, 3, 320, 640))
    assert [tuple(level.shape[2:]) for level in maps] == [(10, 20), (10, 20), (5, 10)]
    head = RoIHead(channels, 2, MOBILENET_V3_320.roi_head).eval()
    boxes = torch.cat((random_boxes(50, 320), torch.tensor([[0.0, 0.0, 640.0, 320.0], [3.0, 3.0, 3.0, 3.0]])))
    pooled = head.pool(maps, stack_regions([boxes]))
    assert torch.equal(head.pool([maps[0], torch.zeros_like(maps[1]), maps[2]], stack_regions([boxes])), pooled)


def test_roi_align_is_not_aligned_and_samples_two_points_an_axis() -> None:
    head = RoIHead(4, 2, replace(RESNET50_FPN.roi_head, levels=(0,), scales=(1 / 4,)))
    level = torch.randn(1, 4, 50, 50)
    regions = stack_regions([random_boxes(40, 200)])
    pooled = head.pool([level], regions)
    torch.testing.assert_close(pooled, roi_align(level, regions, 7, 0.25, 2, aligned=False), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(pooled, roi_align(level, regions, 7, 0.25, 2, aligned=True), atol=1e-2)
    assert not torch.allclose(pooled, roi_align(level, regions, 7, 0.25, -1, aligned=False), atol=1e-2)


def test_background_is_class_0_and_never_a_detection() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    boxes = torch.tensor([_square(0, 0, 9), _square(20, 20, 9), _square(40, 40, 9)])
    detections = _postprocess(_head(), logits, boxes)
    pairs = zip(detections.region_rows.tolist(), detections.class_ids.tolist(), strict=True)
    assert sorted(pairs) == [(1, 1), (2, 2)]
    torch.testing.assert_close(detections.scores, F.softmax(logits[1], dim=0)[1].expand(2))


def test_a_detection_scores_strictly_above_the_threshold() -> None:
    # The RPN, in contrast, keeps an objectness that is equal to its threshold.
    head = _head(4)
    logits = torch.zeros(1, 4)  # a quarter each, exactly
    boxes = torch.tensor([_square(0, 0, 20)])
    assert len(_postprocess(head, logits, boxes, score_threshold=0.25).boxes) == 0
    assert len(_postprocess(head, logits, boxes, score_threshold=0.2499).boxes) == 3


def test_each_class_has_offsets_of_its_own() -> None:
    offsets = torch.zeros(1, 3, 4)
    offsets[0, 2, 0] = 10.0  # weight 10: one width to the right
    detections = _postprocess(_head(), _logits((0.2, 0.3, 0.5)), torch.tensor([_square(0, 0, 20)]), offsets)
    assert detections.class_ids.tolist() == [2, 1]
    torch.testing.assert_close(detections.boxes, torch.tensor([[20.0, 0.0, 40.0, 20.0], [0.0, 0.0, 20.0, 20.0]]))


def test_nms_is_within_a_class() -> None:
    proposals = torch.tensor([_square(0, 0, 20), _square(1, 0, 20)])
    detections = _postprocess(_head(), _logits((0.1, 0.5, 0.4), (0.1, 0.7, 0.2)), proposals)
    pairs = zip(detections.class_ids.tolist(), detections.region_rows.tolist(), strict=True)
    assert list(pairs) == [(1, 1), (2, 0)]
    torch.testing.assert_close(detections.scores, torch.tensor([0.7, 0.4]))


def test_only_the_classes_of_the_mask_are_returned() -> None:
    mask = torch.tensor([False, False, True])
    detections = _postprocess(_head(), _logits((0.1, 0.6, 0.3)), torch.tensor([_square(0, 0, 9)]), class_mask=mask)
    assert detections.class_ids.tolist() == [2]


def test_detections_come_by_falling_score() -> None:
    proposals = torch.tensor([_square(0, 0, 9), _square(20, 0, 9), _square(0, 20, 9)])
    logits = _logits((0.4, 0.5, 0.1), (0.2, 0.7, 0.1), (0.3, 0.6, 0.1))
    detections = _postprocess(_head(), logits, proposals, score_threshold=0.2)
    assert detections.region_rows.tolist() == [1, 2, 0]
    torch.testing.assert_close(detections.scores, torch.tensor([0.7, 0.6, 0.5]))


def test_boxes_are_clipped_to_the_image_and_slivers_dropped() -> None:
    proposals = torch.tensor([[40.0, 40.0, 90.0, 90.0], [50.0, 0.0, 90.0, 9.0], [0.0, 0.0, 9e-3, 9.0]])
    logits = _logits((0.1, 0.8, 0.1), (0.1, 0.8, 0.1), (0.1, 0.8, 0.1))
    detections = _postprocess(_head(), logits, proposals, score_threshold=0.2)
    assert detections.boxes.tolist() == [[40.0, 40.0, 50.0, 50.0]]


def test_no_proposals_give_no_detections() -> None:
    head = RoIHead(4, 3, RESNET50_FPN.roi_head).eval()
    maps = [torch.randn(1, 4, side, side) for side in (32, 16, 8, 4)]
    logits, offsets = head(maps, stack_regions([torch.zeros(0, 4)]))
    assert (logits.shape, offsets.shape) == ((0, 3), (0, 3, 4))
    detections = _postprocess(head, logits, torch.zeros(0, 4), offsets)
    assert detections.boxes.shape == (0, 4)
    assert [len(field) for field in detections] == [0] * 5


def test_images_of_a_batch_have_their_own_thresholds() -> None:
    head = _head()
    boxes = torch.tensor([_square(0, 0, 20), _square(0, 0, 15)])  # IoU 0.5625
    logits = _logits((0.1, 0.8, 0.1), (0.3, 0.6, 0.1)).repeat(3, 1)
    detections = head.postprocess(
        logits,
        torch.zeros(6, 3, 4),
        stack_regions([boxes] * 3),
        torch.tensor([[50, 50], [50, 50], [50, 12]]),
        torch.tensor([0.2, 0.2, 0.7]),
        [0.5, 0.6, 0.6],
    )
    counts = torch.bincount(detections.images, minlength=3).tolist()
    assert counts == [1, 2, 1]
    assert detections.scores.tolist() == sorted(detections.scores.tolist(), reverse=True)
    assert detections.boxes[detections.images == 2].tolist() == [[0.0, 0.0, 12.0, 20.0]]


def test_regions_carry_their_images_number() -> None:
    regions = stack_regions([torch.ones(2, 4), torch.zeros(0, 4), torch.full((1, 4), 5.0)])
    assert regions[:, 0].tolist() == [0, 0, 2]
    assert regions[2, 1:].tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("preset", [LITE, RESNET50_FPN, PAPER_VGG16], ids=lambda preset: preset.name)
def test_the_head_gives_logits_and_offsets_for_every_class(preset) -> None:  # type: ignore[no-untyped-def]
    head = _head(5, preset.roi_head)
    maps = [torch.randn(2, 4, 64 // s, 64 // s) for s in (1, 2, 4, 8)]
    regions = stack_regions([torch.tensor([_square(0, 0, 30)]), torch.tensor([_square(5, 5, 20), _square(0, 0, 9)])])
    logits, offsets = head(maps, regions)
    assert logits.shape == (3, 5)
    assert offsets.shape == (3, 5, 4)
