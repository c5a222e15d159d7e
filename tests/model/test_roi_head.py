"""The Fast R-CNN detector: levels, and from scores to detections."""

from dataclasses import replace

import pytest
import torch

from model.config import RoIHeadConfig
from model.presets import LITE, PAPER_VGG16, RESNET50_FPN
from model.roi_head import RoIHead, stack_regions

WHOLE = {"score_threshold": 0.05, "nms_threshold": 0.5, "max_detections": 100}


def _head(num_classes: int = 3, config: RoIHeadConfig = LITE.roi_head) -> RoIHead:
    return RoIHead(4, num_classes, replace(config, fc_channels=(8,))).eval()


def _logits(*rows: tuple[float, ...]) -> torch.Tensor:
    """Class probabilities as logits."""
    return torch.log(torch.tensor(rows))


def _square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y + side]


def test_a_region_is_pooled_from_the_level_of_its_size() -> None:
    # FPN eq. 1 with k0 = 4 at 224: 112 is level 3 of the pyramid's 2 to 5, so position 1.
    head = RoIHead(4, 3, replace(RESNET50_FPN.roi_head, fc_channels=(8,)))
    sides = [1.0, 111.0, 112.0, 223.9, 224.0, 448.0, 4000.0]
    levels = head.levels(torch.tensor([_square(0, 0, side) for side in sides]))
    assert levels.tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_a_side_on_the_border_of_two_levels_is_not_lost_to_rounding() -> None:
    # Trap 16: log2 of just under 1 must still floor to the upper level.
    head = RoIHead(4, 3, replace(RESNET50_FPN.roi_head, fc_channels=(8,)))
    assert head.levels(torch.tensor([_square(0.1, 0.1, 223.99999)])).tolist() == [2]


def test_a_region_without_area_is_pooled_from_the_finest_level() -> None:
    assert _head().levels(torch.tensor([[5.0, 5.0, 5.0, 9.0]])).tolist() == [0]


def test_the_paper_pools_maxima_from_its_only_map() -> None:
    head = RoIHead(4, 3, replace(PAPER_VGG16.roi_head, fc_channels=(8,)))
    level = torch.zeros(1, 4, 10, 10)
    level[0, 2, 5, 5] = 7.0
    pooled = head.pool([level], torch.tensor([[0.0, 0.0, 0.0, 159.0, 159.0]]))
    assert pooled.shape == (1, 4, 7, 7)
    assert pooled[0, 2].max() == 7.0


def test_background_never_is_a_detection() -> None:
    # Trap 20.
    head = _head()
    found = head.detections(
        _logits((0.9, 0.05, 0.05)), torch.zeros(1, 3, 4), torch.tensor([_square(0, 0, 20)]), (50, 50), **WHOLE
    )
    assert len(found[0]) == 0


def test_a_detection_scores_strictly_above_the_threshold() -> None:
    # Trap 10.
    head = _head()
    logits = torch.zeros(1, 4)  # a quarter each, exactly
    head.num_classes = 4
    proposals = torch.tensor([_square(0, 0, 20)])
    offsets = torch.zeros(1, 4, 4)
    at = head.detections(logits, offsets, proposals, (50, 50), **{**WHOLE, "score_threshold": 0.25})
    below = head.detections(logits, offsets, proposals, (50, 50), **{**WHOLE, "score_threshold": 0.2499})
    assert (len(at[0]), len(below[0])) == (0, 3)


def test_each_class_has_offsets_of_its_own() -> None:
    head = _head()
    offsets = torch.zeros(1, 3, 4)
    offsets[0, 2, 0] = 10.0  # weight 10: one width to the right
    boxes, _, classes, _ = head.detections(
        _logits((0.2, 0.3, 0.5)), offsets, torch.tensor([_square(0, 0, 20)]), (50, 50), **WHOLE
    )
    assert classes.tolist() == [2, 1]
    torch.testing.assert_close(boxes, torch.tensor([[20.0, 0.0, 40.0, 20.0], [0.0, 0.0, 20.0, 20.0]]))


def test_nms_is_within_a_class() -> None:
    head = _head()
    proposals = torch.tensor([_square(0, 0, 20), _square(1, 0, 20)])
    _, scores, classes, rows = head.detections(
        _logits((0.1, 0.5, 0.4), (0.1, 0.7, 0.2)), torch.zeros(2, 3, 4), proposals, (50, 50), **WHOLE
    )
    assert list(zip(classes.tolist(), rows.tolist(), strict=True)) == [(1, 1), (2, 0)]
    torch.testing.assert_close(scores, torch.tensor([0.7, 0.4]))


def test_only_the_wanted_classes_are_returned() -> None:
    head = _head()
    mask = torch.tensor([False, False, True])
    found = head.detections(
        _logits((0.1, 0.6, 0.3)),
        torch.zeros(1, 3, 4),
        torch.tensor([_square(0, 0, 9)]),
        (50, 50),
        **WHOLE,
        class_mask=mask,
    )
    assert found[2].tolist() == [2]


def test_the_best_are_kept_and_the_rest_cut() -> None:
    head = _head()
    proposals = torch.tensor([_square(0, 0, 9), _square(20, 0, 9), _square(0, 20, 9)])
    logits = _logits((0.4, 0.5, 0.1), (0.2, 0.7, 0.1), (0.3, 0.6, 0.1))
    _, scores, _, rows = head.detections(
        logits, torch.zeros(3, 3, 4), proposals, (50, 50), score_threshold=0.2, nms_threshold=0.5, max_detections=2
    )
    assert rows.tolist() == [1, 2]
    torch.testing.assert_close(scores, torch.tensor([0.7, 0.6]))


def test_boxes_are_clipped_to_the_picture_and_slivers_dropped() -> None:
    head = _head()
    proposals = torch.tensor([[40.0, 40.0, 90.0, 90.0], [50.0, 0.0, 90.0, 9.0]])
    logits = _logits((0.1, 0.8, 0.1), (0.1, 0.8, 0.1))
    boxes, *_ = head.detections(
        logits, torch.zeros(2, 3, 4), proposals, (50, 50), score_threshold=0.2, nms_threshold=0.5, max_detections=9
    )
    assert boxes.tolist() == [[40.0, 40.0, 50.0, 50.0]]


def test_no_proposals_give_no_detections() -> None:
    # Trap 19.
    head = _head()
    boxes, scores, classes, rows = head.detections(
        torch.zeros(0, 3), torch.zeros(0, 3, 4), torch.zeros(0, 4), (50, 50), **WHOLE
    )
    assert (boxes.shape, len(scores), len(classes), len(rows)) == ((0, 4), 0, 0, 0)


def test_regions_remember_their_picture() -> None:
    regions = stack_regions([torch.ones(2, 4), torch.zeros(0, 4), torch.full((1, 4), 5.0)])
    assert regions[:, 0].tolist() == [0, 0, 2]
    assert regions[2, 1:].tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize("preset", [LITE, RESNET50_FPN, PAPER_VGG16], ids=lambda preset: preset.name)
def test_the_head_answers_for_every_class(preset) -> None:  # type: ignore[no-untyped-def]
    head = _head(5, preset.roi_head)
    maps = [torch.randn(2, 4, 64 // s, 64 // s) for s in (1, 2, 4, 8)]
    regions = stack_regions([torch.tensor([_square(0, 0, 30)]), torch.tensor([_square(5, 5, 20), _square(0, 0, 9)])])
    logits, offsets = head(maps, regions)
    assert logits.shape == (3, 5)
    assert offsets.shape == (3, 5, 4)
