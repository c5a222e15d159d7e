"""Our forms of torchvision's operators against torchvision's own."""

import torch
from torchvision import ops as tv_ops
from torchvision.ops import MultiScaleRoIAlign

from model.ops import flatten_maps, grouped_nms, nms, pool_table


def _boxes(count: int, size: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 0.6
    side = torch.rand(count, 2, generator=generator) * size
    return torch.cat((corner - 5, corner + side + 1), dim=1)  # some begin outside the canvas


def test_pooling_from_the_table_is_roi_align_on_every_level() -> None:
    maps = [torch.randn(2, 8, 256 // s, 320 // s) for s in (8, 16, 32)]
    boxes = [_boxes(40, 256, seed) for seed in (1, 2)]
    regions = torch.cat([torch.cat((torch.full((40, 1), float(i)), b), dim=1) for i, b in enumerate(boxes)])
    reference = MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=112)
    expected = reference(dict(zip("012", maps, strict=True)), boxes, [(256, 320), (256, 320)])
    area = (regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])
    levels = torch.floor(4 + torch.log2(area.sqrt() / 112) + 1e-6).clamp(3, 5).long() - 3
    assert len(levels.unique()) == 3
    table, shapes = flatten_maps(maps)
    pooled = pool_table(table, shapes, (1 / 8, 1 / 16, 1 / 32), regions, levels, 2, 7, 2)
    torch.testing.assert_close(pooled, expected, atol=2e-5, rtol=1e-4)


def test_pooling_gives_the_maps_the_gradient_that_roi_align_gives() -> None:
    level = torch.randn(1, 4, 16, 16, requires_grad=True)
    regions = torch.cat((torch.zeros(10, 1), _boxes(10, 128)), dim=1)
    weight = torch.randn(10, 4, 7, 7)
    tv = (tv_ops.roi_align(level, regions, 7, 1 / 8, 2, aligned=False) * weight).sum()
    (expected,) = torch.autograd.grad(tv, level)
    table, shapes = flatten_maps([level])
    ours = pool_table(table, shapes, (1 / 8,), regions, torch.zeros(10, dtype=torch.int64), 1, 7, 2)
    (gradient,) = torch.autograd.grad((ours * weight).sum(), level)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_no_regions_pool_to_nothing() -> None:
    table, shapes = flatten_maps([torch.randn(1, 4, 8, 8)])
    pooled = pool_table(table, shapes, (1 / 8,), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 1, 7, 2)
    assert pooled.shape == (0, 4, 7, 7)


def test_nms_drops_what_overlaps_by_more_than_the_threshold_only() -> None:
    # Trap 10: an IoU of exactly 0.5 stays.
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 0.9]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]


def test_equal_scores_keep_their_order() -> None:
    # Trap 11.
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(300, 1)
    assert nms(boxes, torch.full((300,), 0.5), 0.5).tolist() == [0]


def test_groups_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).repeat(4, 1)
    kept = grouped_nms(boxes, torch.tensor([0.1, 0.4, 0.3, 0.2]), torch.tensor([0, 1, 0, 1]), 0.5)
    assert kept.tolist() == [1, 2]


def test_grouped_nms_agrees_with_torchvision_group_by_group() -> None:
    boxes, scores = _boxes(500, 100), torch.rand(500)
    groups = torch.randint(0, 5, (500,))
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
