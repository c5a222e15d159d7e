"""The one door to ``torchvision.ops``, and to our own faster forms of what it has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops as tv_ops
from torchvision.ops import FrozenBatchNorm2d

__all__ = [
    "FrozenBatchNorm2d",
    "flatten_maps",
    "grouped_nms",
    "map_shapes",
    "nms",
    "pool_table",
    "roi_align",
    "roi_pool",
    "sorted_nms",
    "table_layout",
]

Shapes = tuple[tuple[int, int], ...]

# Comparisons of two boxes that take as long as a call of NMS with its sorting (docs/engine.md).
_PAIRS_A_CALL = 40_000
# On a GPU comparisons are cheap and calls wait for the device, but all pairs of this many boxes take 50 MB.
_TOGETHER_CUDA = 20_000


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Kept indices int64 [K] by falling score; drops a box whose IoU with a kept one is > threshold (trap 10).

    boxes: float [M, 4]; scores: float32 [M]. Equal scores keep their order (trap 11): the sort is stable on every
    device because we sort here, and the operator's own sort of a sorted list has nothing to do.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[sorted_nms(boxes[order], threshold)]


def sorted_nms(boxes: Tensor, threshold: float) -> Tensor:
    """``nms`` of boxes [M, 4] that lie by falling score already."""
    ranks = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    kept: Tensor = tv_ops.nms(boxes, ranks, threshold)
    return kept


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """NMS within each group (a level, or a class): kept indices int64 [K] by falling score over all groups.

    boxes: float32 [M, 4]; scores: float32 [M]; groups: int64 [M].
    """
    # NMS looks at pairs, a call of it costs time too: which is less, one call for all or one a group?
    if boxes.is_cuda:
        together, names = len(boxes) <= _TOGETHER_CUDA, groups
    else:
        names = torch.unique(groups)
        together = len(boxes) ** 2 <= _PAIRS_A_CALL * len(names)
    if together:
        # Groups shifted apart, so that they cannot overlap. In float32 that rounds coordinates by enough to flip an IoU
        # near the threshold (trap 12); in float64 there are 29 more bits, which the shift does not use up.
        high = boxes.double()
        beyond = high.amax() - high.amin() + 1 if len(boxes) else 1
        return nms(high + (groups * beyond)[:, None], scores, threshold)
    keep = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for group in torch.unique(names):
        members = torch.nonzero(groups == group).squeeze(1)
        keep[members[nms(boxes[members], scores[members], threshold)]] = True
    kept = torch.nonzero(keep).squeeze(1)
    return kept[torch.sort(scores[kept], descending=True, stable=True).indices]


def roi_align(
    maps: Sequence[Tensor],
    scales: tuple[float, ...],
    regions: Tensor,
    levels: Tensor,
    resolution: int,
    sampling: int,
) -> Tensor:
    """RoIAlign of each level with torchvision's operator: the other form of ``pool_table``.

    maps: L of [B, C, Hl, Wl]; the rest as there. Returns [R, C, resolution, resolution] in the maps' dtype. In float32
    throughout, as ``roi_pool``. aligned=False as TV's detectors were trained (trap 15).
    """
    order = torch.sort(levels, stable=True).indices
    # One wait for the device, for all levels together.
    counts = torch.bincount(levels, minlength=len(maps)).tolist() if len(maps) > 1 else [len(regions)]
    pooled = torch.cat(
        [
            tv_ops.roi_align(level.float(), mine, resolution, scale, sampling, aligned=False)
            for level, mine, scale in zip(maps, regions.float()[order].split(counts), scales, strict=True)
        ]
    )
    return pooled[torch.argsort(order)].to(maps[0].dtype)


def roi_pool(maps: Tensor, regions: Tensor, scale: float, resolution: int) -> Tensor:
    """The paper's RoIPool [R, C, r, r]: each bin's maximum. maps [B, C, Hl, Wl]; regions float32 [R, 5]: index, box.

    In float32 throughout: the operator wants one type for both, has no bf16 on a CPU, and in bf16 a corner near 1000
    would move by up to 2 pixels (trap 13). A maximum loses nothing on the way back.
    """
    pooled: Tensor = tv_ops.roi_pool(maps.float(), regions.float(), resolution, scale)
    return pooled.to(maps.dtype)


def flatten_maps(maps: Sequence[Tensor]) -> Tensor:
    """The pyramid as one table [sum of B*Hl*Wl, C], level-major, then picture, row, column."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]) for level in maps])


def map_shapes(maps: Sequence[Tensor]) -> Shapes:
    """(Hl, Wl) of each map [B, C, Hl, Wl]."""
    return tuple((int(level.shape[2]), int(level.shape[3])) for level in maps)


@lru_cache(maxsize=256)
def table_layout(shapes: Shapes, batch: int, device: torch.device) -> Tensor:
    """Where each level lies in a table of ``batch`` pictures: int64 [L, 3] of height, width and first row.

    Cached, since there are few: a caller must not write to what it gets.
    """
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start))
        start += batch * height * width
    with torch.inference_mode(False):  # training may meet it in the cache
        return torch.tensor(rows, dtype=torch.int64, device=device)


def pool_table(
    table: Tensor,
    layout: Tensor,
    scales: tuple[float, ...],
    regions: Tensor,
    levels: Tensor,
    resolution: int,
    sampling: int,
) -> Tensor:
    """RoIAlign of every level at once, as a weighted embedding bag over the flattened pyramid.

    A bin is the mean of sampling^2 points, a point the bilinear mix of 4 cells: so a bin is the weighted sum of
    4 * sampling^2 rows of ``table``. Same numbers as ``torchvision.ops.roi_align`` with aligned=False, to rounding.

    table: [sum of batch*Hl*Wl, C] from ``flatten_maps``, its layout int64 [L, 3] from ``table_layout``. scales: cells a
    canvas pixel, by level. regions: float32 [R, 5] of (picture, x1, y1, x2, y2) in canvas pixels. levels: int64 [R],
    the level to pool each from. Returns [R, resolution, resolution, C] in the table's dtype; gradients flow to the
    table alone.
    """
    device = regions.device
    heights, widths, start = layout[levels].unbind(dim=1)
    start = start + regions[:, 0].long() * heights * widths
    scale = torch.tensor(scales, dtype=torch.float32, device=device)[levels]

    def axis(low: Tensor, high: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Two cells and their weights for each sample: int64 and float32 [R, resolution * sampling, 2]."""
        size = (high - low).clamp(min=1.0)
        steps = (torch.arange(resolution * sampling, device=device, dtype=torch.float32) + 0.5) / sampling
        points = low[:, None] + steps[None] * (size / resolution)[:, None]
        inside = (points >= -1.0) & (points <= limit[:, None])
        points = points.clamp(min=0.0)
        first = torch.minimum(points.floor().long(), (limit - 1)[:, None])
        second = torch.minimum(first + 1, (limit - 1)[:, None])
        # Past the last cell's centre the sample is that cell.
        fraction = torch.where(first == second, torch.zeros_like(points), points - first)
        weights = torch.stack((1 - fraction, fraction), dim=-1) * inside[..., None]
        return torch.stack((first, second), dim=-1), weights

    columns, column_weights = axis(regions[:, 1] * scale, regions[:, 3] * scale, widths)
    rows, row_weights = axis(regions[:, 2] * scale, regions[:, 4] * scale, heights)
    count, bins, taps = regions.shape[0], resolution, sampling * 2
    rows = (start[:, None, None] + rows * widths[:, None, None]).reshape(count, bins, 1, taps, 1)
    columns = columns.reshape(count, 1, bins, 1, taps)
    indices = (rows + columns).reshape(-1, taps * taps)
    weights = row_weights.reshape(count, bins, 1, taps, 1) * column_weights.reshape(count, 1, bins, 1, taps)
    weights = (weights / (sampling * sampling)).reshape(-1, taps * taps).to(table.dtype)
    pooled = F.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)
    return pooled.reshape(count, bins, bins, table.shape[1])
