"""NMS against torchvision's operator: box by box, level by level, class by class."""

import itertools

import pytest
import torch
from torchvision import ops as tv_ops
from torchvision.ops.boxes import _batched_nms_coordinate_trick

from model import nms as suppression
from model.nms import PairwiseNMS, exact_threshold, grouped_nms, nms, nms_per_class, nms_per_level
from tests.gpu.simulated_gpu import simulated_gpu
from tests.model.random_boxes import random_boxes

CPU = torch.device("cpu")


def test_nms_drops_what_overlaps_by_more_than_the_threshold_only() -> None:
    # An IoU of exactly 0.5 stays.
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 0.9]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]


def test_of_equal_boxes_with_equal_scores_the_first_is_kept() -> None:
    # A sort that is not stable could keep any of them.
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(300, 1)
    assert nms(boxes, torch.full((300,), 0.5), 0.5).tolist() == [0]


def test_kept_boxes_of_equal_scores_are_ordered_by_index() -> None:
    boxes = torch.tensor([[20.0 * i, 0.0, 20.0 * i + 9, 9.0] for i in range(200)])
    scores = torch.full((200,), 0.5)
    assert nms(boxes, scores, 0.5).tolist() == list(range(200))
    assert grouped_nms(boxes, scores, torch.arange(200) % 3, 0.5).tolist() == list(range(200))


def test_groups_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(4, 1)
    kept = grouped_nms(boxes, torch.tensor([0.1, 0.4, 0.3, 0.2]), torch.tensor([0, 1, 0, 1]), 0.5)
    assert kept.tolist() == [1, 2]


@pytest.mark.parametrize("count", [500, 3000], ids=["in one call", "group by group"])
def test_grouped_nms_agrees_with_torchvision_group_by_group(count: int) -> None:
    boxes, scores = random_boxes(count, 100).clamp(min=0), torch.rand(count)
    groups = torch.randint(0, 5, (count,))
    kept = grouped_nms(boxes, scores, groups, 0.6)
    expected = torch.cat(
        [
            torch.nonzero(groups == g).squeeze(1)[tv_ops.nms(boxes[groups == g], scores[groups == g], 0.6)]
            for g in range(5)
        ]
    )
    assert set(kept.tolist()) == set(expected.tolist())
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)


def test_nms_of_nothing_is_nothing() -> None:
    assert grouped_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5).tolist() == []


def test_an_iou_next_to_the_threshold_is_decided_as_without_groups() -> None:
    # Overlaps of slightly less and slightly more than 0.7. torchvision shifts the groups apart in float32, by some 1e5
    # here, which rounds the coordinates and moves an IoU across the threshold.
    far = torch.tensor([[0.0, 0.0, 1.2e5, 1.0]])
    scores, groups = torch.tensor([0.9, 0.8, 0.1]), torch.tensor([7, 7, 0])
    wrong_in_float32 = 0
    for i in range(400):
        pair = torch.tensor([[0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 70.0 - 1e-4 + i * 5e-7, 100.0]])
        boxes = torch.cat((pair, far))
        expected = len(tv_ops.nms(pair, scores[:2], 0.7)) + 1
        assert len(grouped_nms(boxes, scores, groups, 0.7)) == expected
        wrong_in_float32 += len(_batched_nms_coordinate_trick(boxes, scores, groups, 0.7)) != expected
    assert wrong_in_float32


# ---- all groups at once: what a GPU runs, here on the CPU


def _settled(pairs: PairwiseNMS) -> tuple[torch.Tensor, int]:
    """Return keep at the fixed point, and the number of iterations, the last of which changed nothing."""
    for count in itertools.count(1):
        keep, done = pairs.advance(1)
        if done:
            return keep, count
    raise AssertionError


def _by_falling_score(groups: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    boxes = torch.stack([random_boxes(count, 100, seed) for seed in range(groups)])
    return boxes, torch.rand(groups, count).sort(dim=1, descending=True).values


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_pairwise_nms_keeps_what_torchvision_keeps(threshold: float) -> None:
    boxes, scores = _by_falling_score(6, 300)
    valid = torch.rand(6, 300) > 0.1
    thresholds = torch.full((6,), exact_threshold(threshold))
    keep, _ = _settled(PairwiseNMS(boxes, valid, thresholds))
    for group in range(6):
        alive = valid[group].nonzero().squeeze(1)
        expected = alive[tv_ops.nms(boxes[group, alive], scores[group, alive], threshold)]
        assert keep[group].nonzero().squeeze(1).tolist() == sorted(expected.tolist())


def test_each_group_has_its_own_threshold() -> None:
    pair = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # an IoU of a half
    thresholds = torch.tensor([0.4, 0.5, 0.6])
    keep, _ = _settled(PairwiseNMS(pair.expand(3, 2, 4).clone(), torch.ones(3, 2, dtype=torch.bool), thresholds))
    assert keep.tolist() == [[True, False], [True, True], [True, True]]


def test_a_threshold_that_float32_cannot_hold_is_rounded_down() -> None:
    # As torchvision's CPU operator, which compares with the double: 0.3 as float32 is 0.30000001, above 0.3.
    assert exact_threshold(0.3) < 0.3 < torch.tensor(0.3).item()
    assert exact_threshold(0.5) == 0.5
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 3.0, 1.0]])  # an IoU of 3 / 10 in float32
    expected = tv_ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.3).tolist()
    keep, _ = _settled(
        PairwiseNMS(boxes[None], torch.ones(1, 2, dtype=torch.bool), torch.tensor([exact_threshold(0.3)]))
    )
    assert keep[0].nonzero().squeeze(1).tolist() == expected == [0]


def test_nms_of_a_chain_of_a_thousand_boxes_converges_after_a_thousand_iterations() -> None:
    # Each overlaps its neighbours by a third alone: every second one stays, and one after the other is decided.
    left = torch.arange(1000.0) * 5
    chain = torch.stack((left, torch.zeros(1000), left + 10, torch.ones(1000)), dim=1)
    keep, iterations = _settled(PairwiseNMS(chain[None], torch.ones(1, 1000, dtype=torch.bool), torch.tensor([0.3])))
    assert keep[0].tolist() == [True, False] * 500
    assert 999 <= iterations <= 1001


def test_a_box_that_is_not_valid_is_not_kept_and_drops_no_other() -> None:
    same = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(1, 3, 1)
    keep, _ = _settled(PairwiseNMS(same, torch.tensor([[False, True, True]]), torch.tensor([0.5])))
    assert keep.tolist() == [[False, True, False]]


def test_boxes_without_an_area_overlap_nothing() -> None:
    flat = torch.zeros(1, 3, 4)
    keep, _ = _settled(PairwiseNMS(flat, torch.ones(1, 3, dtype=torch.bool), torch.tensor([0.5])))
    assert keep.all()
    assert tv_ops.nms(flat[0], torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("pairs_at_once", [2**25, 1], ids=["in one step", "image by image"])
def test_nms_of_all_levels_together_keeps_what_nms_of_each_keeps(
    monkeypatch: pytest.MonkeyPatch, pairs_at_once: int
) -> None:
    monkeypatch.setattr(suppression, "MASK_PAIRS", pairs_at_once)
    monkeypatch.setattr(suppression, "_PAIRS_AT_ONCE", pairs_at_once)
    counts = (120, 60, 7, 1)
    boxes, scores = random_boxes(3 * sum(counts), 100).view(3, -1, 4), torch.rand(3, sum(counts))
    scores = torch.cat([part.sort(dim=1, descending=True).values for part in scores.split(counts, dim=1)], dim=1)
    scores[1] = scores[1].mul(4).floor() / 4  # ties
    valid = torch.rand(3, sum(counts)) > 0.2
    valid[2, :120] = False
    expected = nms_per_level(boxes, valid, scores, counts, 0.5)
    together = suppression._nms_per_level_together(boxes, valid, scores, counts, 0.5)
    assert [kept.tolist() for kept in together] == [kept.tolist() for kept in expected]


@pytest.mark.parametrize(
    "mask_pairs", [2**27, 20_000, 200], ids=["in one mask", "in several masks", "by torchvision's operator"]
)
def test_nms_of_all_classes_together_keeps_what_nms_of_each_keeps(
    monkeypatch: pytest.MonkeyPatch, mask_pairs: int
) -> None:
    monkeypatch.setattr(suppression, "MASK_PAIRS", mask_pairs)
    boxes, scores = random_boxes(400, 100), torch.rand(400).mul(50).floor() / 50  # with ties
    groups = torch.randint(0, 9, (400,)).clamp(max=6)  # group 6 is large, 7 and 8 are empty
    counts = torch.bincount(groups, minlength=9).tolist()
    thresholds = [0.1 * group for group in range(9)]
    valid = torch.rand(400) > 0.1
    keep, done = nms_per_class(boxes, scores, groups, valid, counts, thresholds, until_converged=True)
    assert done
    for group in range(9):
        members = ((groups == group) & valid).nonzero().squeeze(1)
        expected = members[nms(boxes[members], scores[members], thresholds[group])]
        assert (keep & (groups == group)).nonzero().squeeze(1).tolist() == sorted(expected.tolist())


def test_levels_whose_masks_would_be_too_large_are_left_to_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, boxes = (30, 20), random_boxes(50, 100)[None]
    scores = torch.cat([torch.rand(1, count).sort(dim=1, descending=True).values for count in counts], dim=1)
    valid = torch.ones(1, 50, dtype=torch.bool)
    expected = nms_per_level(boxes, valid, scores, counts, 0.5)
    for pairs, together in ((2 * 30**2, True), (2 * 30**2 - 1, False)):
        monkeypatch.setattr(suppression, "MASK_PAIRS", pairs)
        with simulated_gpu() as gpu:
            on_gpu = [part.pin_memory().to("cuda", non_blocking=True) for part in (boxes, valid, scores)]
            gpu.reset()
            answers = nms_per_level(*on_gpu, counts, 0.5)
            waits = gpu.wait_count
            assert [answer.tolist() for answer in answers] == [reference.tolist() for reference in expected]
        assert (waits == 1) == together


def test_no_candidates_leave_no_detections() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    keep, done = nms_per_class(
        torch.zeros(0, 4), torch.zeros(0), none, none.bool(), [0, 0], [0.5, 0.5], until_converged=False
    )
    assert keep.tolist() == []
    assert done


def test_what_has_not_converged_is_reported() -> None:
    left = torch.arange(100.0) * 5
    chain = torch.stack((left, torch.zeros(100), left + 10, torch.ones(100)), dim=1)
    arguments = (
        chain,
        torch.arange(100, 0, -1.0),
        torch.zeros(100, dtype=torch.int64),
        torch.ones(100).bool(),
        [100],
        [0.3],
    )
    assert not nms_per_class(*arguments, until_converged=False)[1]
    keep, done = nms_per_class(*arguments, until_converged=True)
    assert done
    assert keep.tolist() == [True, False] * 50


def test_masks_fit_into_their_bound_and_small_groups_do_not_pad_to_large_ones() -> None:
    counts = [1000] * 200 + [3] * 500 + [0] * 40
    chunks = suppression._chunks(counts)
    assert sorted(itertools.chain(*chunks)) == [group for group, count in enumerate(counts) if count]
    assert all(len(chunk) * counts[chunk[0]] ** 2 <= suppression.MASK_PAIRS for chunk in chunks)
    assert [len(chunk) for chunk in chunks] == [134, 66, 500]
