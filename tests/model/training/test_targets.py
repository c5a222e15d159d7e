"""Matching and sampling: which anchors and regions learn what."""

from dataclasses import replace

import torch

from model.presets import LITE, PAPER_VGG16, RESNET50_FPN
from model.training.targets import (
    BACKGROUND,
    IGNORED,
    Truth,
    anchor_targets,
    exclude_ignored,
    match_boxes,
    region_targets,
    sample_balanced,
)
from tests.model.random_boxes import random_boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def _truth(boxes: list[list[float]], ignored: list[list[float]] | None = None) -> Truth:
    return Truth(
        torch.tensor(boxes).reshape(-1, 4),
        torch.arange(1, len(boxes) + 1),
        torch.tensor(ignored or []).reshape(-1, 4),
        (100, 100),
    )


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_anchor_is_positive_above_one_threshold_background_below_the_other_and_ignored_between() -> None:
    overlaps = torch.tensor([[0.71, 0.7, 0.5, 0.3, 0.29], [0.1, 0.9, 0.0, 0.0, 0.0]])
    assert match_boxes(overlaps, 0.7, 0.3).tolist() == [0, 1, IGNORED, IGNORED, BACKGROUND]


def test_the_best_anchor_of_a_box_is_positive_at_any_overlap_and_ties_are_kept() -> None:
    overlaps = torch.tensor([[0.2, 0.2, 0.1], [0.0, 0.0, 0.0]])
    # The second box overlaps nothing: it has no best anchor.
    assert match_boxes(overlaps, 0.7, 0.3, keep_best=True).tolist() == [0, 0, BACKGROUND]


def test_the_best_anchor_of_a_box_is_matched_to_the_box_that_it_overlaps_most() -> None:
    # As torchvision does it: anchor 0 is the best of box 1, but overlaps box 0 more.
    overlaps = torch.tensor([[0.6, 0.65], [0.4, 0.1]])
    assert match_boxes(overlaps, 0.7, 0.3, keep_best=True).tolist() == [0, 0]


def test_without_ground_truth_everything_is_background() -> None:
    # A maximum over no boxes does not exist: this case is one of its own.
    assert match_boxes(torch.zeros(0, 3), 0.7, 0.3, keep_best=True).tolist() == [BACKGROUND] * 3


def test_a_box_on_an_ignored_box_is_not_background() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    matched = torch.tensor([BACKGROUND, BACKGROUND])
    assert exclude_ignored(matched, boxes, boxes[:1], 0.5).tolist() == [IGNORED, BACKGROUND]


def test_positives_fill_at_most_their_share_and_background_the_rest() -> None:
    matched = torch.tensor([0] * 100 + [BACKGROUND] * 1000 + [IGNORED] * 50)
    positives, background = sample_balanced(matched, 128, 0.25, _generator())
    assert (len(positives), len(background)) == (32, 96)
    assert (matched[positives] == 0).all()
    assert (matched[background] == BACKGROUND).all()


def test_background_fills_the_sample_where_positives_are_few() -> None:
    positives, background = sample_balanced(torch.tensor([3] + [BACKGROUND] * 500), 256, 0.5, _generator())
    assert (len(positives), len(background)) == (1, 255)


def test_sampling_is_random_and_the_generator_decides_it() -> None:
    matched = torch.full((1000,), BACKGROUND)
    first, again, other = (sample_balanced(matched, 10, 0.5, _generator(seed))[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_anchors_that_cross_the_border_are_ignored_by_the_paper() -> None:
    anchors = torch.tensor([[-1.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 20.0], [90.0, 90.0, 101.0, 99.0]])
    truth = _truth([[0.0, 0.0, 20.0, 20.0]])
    paper = anchor_targets(anchors, truth, PAPER_VGG16.sampling, _generator())
    assert paper.positives.tolist() == [1]
    assert paper.background.tolist() == []
    lite = anchor_targets(anchors, truth, LITE.sampling, _generator())
    assert sorted(lite.positives.tolist()) == [0, 1]
    assert lite.background.tolist() == [2]


def test_an_anchors_target_is_the_offset_to_its_box() -> None:
    anchors = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    targets = anchor_targets(anchors, _truth([[2.0, 0.0, 22.0, 20.0]]), LITE.sampling, _generator())
    torch.testing.assert_close(targets.deltas, torch.tensor([[0.1, 0.0, 0.0, 0.0]]))


def test_the_ground_truth_is_among_the_regions() -> None:
    # As in py-faster-rcnn: without the true boxes the detector would have no foreground at first.
    truth = _truth([[10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 90.0, 90.0]])
    targets = region_targets(torch.zeros(0, 4), truth, replace(LITE.sampling, roi_batch=8), WEIGHTS, _generator())
    assert sorted(targets.class_ids.tolist()) == [1, 2]
    assert targets.deltas.abs().max() == 0


def test_regions_learn_the_class_and_the_weighted_offsets_of_their_box() -> None:
    truth = _truth([[0.0, 0.0, 20.0, 20.0]])
    proposals = torch.tensor([[2.0, 0.0, 22.0, 20.0], [70.0, 70.0, 90.0, 90.0]])
    targets = region_targets(proposals, truth, replace(LITE.sampling, roi_batch=12), WEIGHTS, _generator())
    row = targets.boxes[:, 0].tolist().index(2.0)
    assert targets.class_ids[row] == 1
    torch.testing.assert_close(targets.deltas[row], torch.tensor([-1.0, 0.0, 0.0, 0.0]))
    assert targets.class_ids[targets.boxes[:, 0].tolist().index(70.0)] == 0


def test_an_image_without_objects_gives_background_alone() -> None:
    boxes, config = random_boxes(600, 100), RESNET50_FPN.sampling
    anchors = anchor_targets(boxes, _truth([]), config, _generator())
    assert (len(anchors.positives), len(anchors.background)) == (0, config.rpn_batch)
    regions = region_targets(boxes, _truth([]), config, WEIGHTS, _generator())
    assert regions.class_ids.tolist() == [0] * config.roi_batch
    no_proposals = region_targets(torch.zeros(0, 4), _truth([]), config, WEIGHTS, _generator())
    assert no_proposals.class_ids.tolist() == []


def test_background_regions_can_be_limited_to_those_near_an_object() -> None:
    # py-faster-rcnn's default: background is [0.1, 0.5).
    config = replace(LITE.sampling, roi_negative_iou=0.1)
    truth = _truth([[0.0, 0.0, 20.0, 20.0]])
    near, far = [0.0, 0.0, 20.0, 60.0], [70.0, 70.0, 90.0, 90.0]
    targets = region_targets(torch.tensor([near, far]), truth, config, WEIGHTS, _generator())
    assert far not in targets.boxes.tolist()
    assert near in targets.boxes.tolist()
