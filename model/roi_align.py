"""The pooling of regions: the paper's RoIPool, and RoIAlign of all pyramid levels at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops as tv_ops

from model.transfer import constant, upload

__all__ = [
    "flatten_maps",
    "map_shapes",
    "roi_align_embedding_bag",
    "roi_pool",
    "table_layout",
]

Shapes = tuple[tuple[int, int], ...]


def roi_pool(maps: Tensor, regions: Tensor, scale: float, resolution: int) -> Tensor:
    """Pool the maximum of each bin (the paper's RoIPool): [R, C, r, r] in the type of ``maps``.

    maps: [B, C, Hl, Wl]. regions: float32 [R, 5] of (image, x1, y1, x2, y2) in canvas pixels. scale: cells a canvas
    pixel. In float32 throughout: the operator wants one type for maps and regions and has no bfloat16 on a CPU, and
    bfloat16 would move a corner near 1000 by up to 2 pixels. A maximum is converted back without loss.
    """
    pooled: Tensor = tv_ops.roi_pool(maps.float(), regions.float(), resolution, scale)
    return pooled.to(maps.dtype)


def flatten_maps(maps: Sequence[Tensor]) -> Tensor:
    """Flatten the pyramid's maps [B, C, Hl, Wl] to one table [sum of B*Hl*Wl, C]: by level, image, row, column."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, level.shape[1]) for level in maps])


def map_shapes(maps: Sequence[Tensor]) -> Shapes:
    """Return (Hl, Wl) of each map [B, C, Hl, Wl]."""
    return tuple((int(level.shape[2]), int(level.shape[3])) for level in maps)


@lru_cache(maxsize=256)
def table_layout(shapes: Shapes, batch: int, device: torch.device) -> Tensor:
    """Return each level's height, width and first row in a table of ``batch`` images: int64 [L, 3].

    Cached, since there are few: a caller must not write to the result.
    """
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start))
        start += batch * height * width
    with torch.inference_mode(False):  # training may get it from the cache
        return upload(rows, torch.int64, device)


def roi_align_embedding_bag(
    table: Tensor,
    layout: Tensor,
    scales: tuple[float, ...],
    regions: Tensor,
    levels: Tensor,
    resolution: int,
    sampling: int,
) -> Tensor:
    """Compute RoIAlign on every level at once, as a weighted embedding bag over the flattened pyramid.

    A bin is the mean of sampling^2 points, and a point is interpolated from 4 cells: so a bin is the weighted sum of
    4 * sampling^2 rows of ``table``. The numbers are those of ``torchvision.ops.roi_align`` with aligned=False, to
    rounding.

    table: [sum of batch*Hl*Wl, C] from ``flatten_maps``, its layout int64 [L, 3] from ``table_layout``. scales: cells a
    canvas pixel, by level. regions: float32 [R, 5] of (image, x1, y1, x2, y2) in canvas pixels. levels: int64 [R], the
    level to pool each from. Returns [R, resolution, resolution, C] in the table's dtype; gradients flow to the
    table alone.
    """
    device, count = regions.device, regions.shape[0]
    height, width, start = layout[levels].unbind(dim=1)
    start = start + regions[:, 0].long() * height * width
    scale = constant(scales, device)[levels][:, None]
    # For columns and rows: two cells and their weights for each sample, [R, 2, resolution * sampling, 2].
    low, high = regions[:, 1:3] * scale, regions[:, 3:5] * scale
    limit = torch.stack((width, height), dim=1)[..., None]
    size = (high - low).clamp(min=1.0)
    steps = constant(tuple((i + 0.5) / sampling for i in range(resolution * sampling)), device)
    points = low[..., None] + steps * (size / resolution)[..., None]
    inside = (points >= -1.0) & (points <= limit)
    points = points.clamp(min=0.0)
    last = limit - 1
    first = torch.minimum(points.floor().long(), last)
    second = torch.minimum(first + 1, last)
    # Past the last cell's centre the sample is that cell.
    fraction = torch.where(first == second, 0.0, points - first)
    column_weights, row_weights = (torch.stack((1 - fraction, fraction), dim=-1) * inside[..., None]).unbind(dim=1)
    columns, rows = torch.stack((first, second), dim=-1).unbind(dim=1)
    bins, taps = resolution, sampling * 2
    rows = (start[:, None, None] + rows * width[:, None, None]).reshape(count, bins, 1, taps, 1)
    columns = columns.reshape(count, 1, bins, 1, taps)
    indices = (rows + columns).reshape(-1, taps * taps)
    weights = row_weights.reshape(count, bins, 1, taps, 1) * column_weights.reshape(count, 1, bins, 1, taps)
    weights = (weights / (sampling * sampling)).reshape(-1, taps * taps).to(table.dtype)
    pooled = F.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)
    return pooled.reshape(count, bins, bins, table.shape[1])
