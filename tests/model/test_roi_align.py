"""RoIAlign as an embedding bag against torchvision's operators, and RoIPool in short types."""

import torch
from torchvision import ops as tv_ops
from torchvision.ops import MultiScaleRoIAlign

from model.roi_align import flatten_maps, map_shapes, roi_align_embedding_bag, roi_pool, table_layout
from tests.model.random_boxes import random_boxes

CPU = torch.device("cpu")


def test_the_embedding_bag_computes_roi_align_on_every_level() -> None:
    maps = [torch.randn(2, 8, 256 // s, 320 // s) for s in (8, 16, 32)]
    boxes = [random_boxes(40, 256, seed) for seed in (1, 2)]
    regions = torch.cat([torch.cat((torch.full((40, 1), float(i)), b), dim=1) for i, b in enumerate(boxes)])
    reference = MultiScaleRoIAlign(["0", "1", "2"], 7, 2, canonical_scale=112)
    expected = reference(dict(zip("012", maps, strict=True)), boxes, [(256, 320), (256, 320)])
    area = (regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])
    levels = torch.floor(4 + torch.log2(area.sqrt() / 112) + 1e-6).clamp(3, 5).long() - 3
    assert len(levels.unique()) == 3
    layout = table_layout(map_shapes(maps), 2, CPU)
    pooled = roi_align_embedding_bag(flatten_maps(maps), layout, (1 / 8, 1 / 16, 1 / 32), regions, levels, 7, 2)
    torch.testing.assert_close(pooled.permute(0, 3, 1, 2), expected, atol=2e-5, rtol=1e-4)


def test_pooling_from_bfloat16_maps_keeps_the_regions_exact() -> None:
    # In bfloat16 a corner near 1000 would be rounded by up to 2 pixels.
    level = torch.arange(130.0).expand(1, 1, 130, 130).bfloat16()
    region = torch.tensor([[0.0, 1001.0, 8.0, 1009.0, 16.0]])
    layout = table_layout(map_shapes([level]), 1, CPU)
    pooled = roi_align_embedding_bag(
        flatten_maps([level]), layout, (1 / 8,), region, torch.zeros(1, dtype=torch.int64), 7, 2
    )
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float().mean(), torch.tensor(1005 / 8), atol=0.3, rtol=0)


def test_pooling_gives_the_maps_the_gradient_that_roi_align_gives() -> None:
    level = torch.randn(1, 4, 16, 16, requires_grad=True)
    regions = torch.cat((torch.zeros(10, 1), random_boxes(10, 128)), dim=1)
    weight = torch.randn(10, 4, 7, 7)
    tv = (tv_ops.roi_align(level, regions, 7, 1 / 8, 2, aligned=False) * weight).sum()
    (expected,) = torch.autograd.grad(tv, level)
    layout = table_layout(map_shapes([level]), 1, CPU)
    pooled = roi_align_embedding_bag(
        flatten_maps([level]), layout, (1 / 8,), regions, torch.zeros(10, dtype=torch.int64), 7, 2
    )
    (gradient,) = torch.autograd.grad((pooled.permute(0, 3, 1, 2) * weight).sum(), level)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_no_regions_pool_to_nothing() -> None:
    maps = [torch.randn(1, 4, 8, 8)]
    layout = table_layout(map_shapes(maps), 1, CPU)
    no_levels = torch.zeros(0, dtype=torch.int64)
    pooled = roi_align_embedding_bag(flatten_maps(maps), layout, (1 / 8,), torch.zeros(0, 5), no_levels, 7, 2)
    assert pooled.shape == (0, 7, 7, 4)


def test_roi_pool_of_bfloat16_maps_keeps_the_regions_exact() -> None:
    # In bfloat16 a corner near 1000 is a multiple of 4, and another cell has the maximum of a bin.
    level = torch.randn(1, 2, 38, 63).bfloat16()
    regions = torch.tensor([[0.0, 537.0, 203.0, 987.0, 597.0], [0.0, 5.0, 5.0, 990.0, 590.0]])
    pooled = roi_pool(level, regions, 1 / 16, 7)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled.float(), roi_pool(level.float(), regions, 1 / 16, 7))
