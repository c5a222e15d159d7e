"""Anchors: k reference boxes at every cell of every level (arXiv 1506.01497, section 3.1.1)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from model.config import AnchorConfig
from model.structures import AnchorLocations


def base_anchors(sizes: tuple[float, ...], ratios: tuple[float, ...], *, rounded: bool) -> Tensor:
    """Return the anchors of a cell, float32 [A, 4], centred on (0, 0), ratio-major: all sizes of the first ratio first.

    ratios: height over width. sizes: square roots of the area. rounded: to whole pixels, as torchvision does
    (anchor_utils.py); its checkpoints were trained with such anchors.
    """
    scale = torch.tensor(sizes, dtype=torch.float32)
    heights = torch.sqrt(torch.tensor(ratios, dtype=torch.float32))
    widths = 1 / heights
    ws = (widths[:, None] * scale[None, :]).reshape(-1)
    hs = (heights[:, None] * scale[None, :]).reshape(-1)
    anchors = torch.stack((-ws, -hs, ws, hs), dim=1) / 2
    return anchors.round() if rounded else anchors


def legacy_base_anchors(sizes: tuple[float, ...], ratios: tuple[float, ...], stride: int) -> Tensor:
    """Return py-faster-rcnn's anchors (generate_anchors.py), float32 [A, 4], on the cell [0, stride], ratio-major.

    The sides of the box of each ratio whose size is the stride are rounded first and multiplied after, which is why 128
    at ratio 0.5 gives 184 x 96. py-faster-rcnn counts pixels inclusively and, in the table that it prints, from 1: its
    (-83, -39, 100, 56) are the 184 x 96 pixels that have the corners (-84, -40, 100, 56) here.
    """
    centre = stride / 2
    ratio = torch.tensor(ratios, dtype=torch.float64)
    ws = torch.sqrt(stride**2 / ratio).round()
    hs = (ws * ratio).round()
    scale = torch.tensor(sizes, dtype=torch.float64) / stride
    ws = (ws[:, None] * scale[None, :]).reshape(-1)
    hs = (hs[:, None] * scale[None, :]).reshape(-1)
    return torch.stack((centre - ws / 2, centre - hs / 2, centre + ws / 2, centre + hs / 2), dim=1).float()


def level_strides(
    config: AnchorConfig, canvas: tuple[int, int], maps: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, int], ...]:
    """Return the (vertical, horizontal) canvas pixels between cells, by level.

    canvas: (height, width). maps: (height, width) of each level's map. Without configured strides they are
    ``canvas // map``, as in torchvision, where a map that is rounded up makes the stride a little smaller than the
    backbone's: its checkpoints expect that.
    """
    if config.strides is not None:
        return tuple((stride, stride) for stride in config.strides)
    return tuple((canvas[0] // height, canvas[1] // width) for height, width in maps)


def level_base_anchors(config: AnchorConfig, level: int) -> Tensor:
    """Return the base anchors of a level, float32 [A, 4], around a cell's reference point.

    Raises ``ValueError`` for legacy anchors without fixed strides.
    """
    if config.legacy:
        if config.strides is None:
            raise ValueError("Legacy anchors need fixed strides: set AnchorConfig.strides.")
        return legacy_base_anchors(config.sizes[level], config.ratios, config.strides[level])
    return base_anchors(config.sizes[level], config.ratios, rounded=config.rounded)


@lru_cache(maxsize=64)
def grid_anchors(
    config: AnchorConfig, canvas: tuple[int, int], maps: tuple[tuple[int, int], ...], device: torch.device
) -> Tensor:
    """Return all anchors of a canvas: float32 [N, 4] in canvas pixels, level-major, then row, column, anchor.

    They are not clipped. canvas: (height, width). maps: (height, width) of each level's map. Cached, since canvases are
    few: a caller must not write to the result. Raises ``ValueError`` for another number of maps than of levels.
    """
    if len(maps) != len(config.sizes):
        raise ValueError(f"{len(config.sizes)} levels of anchor sizes for {len(maps)} feature maps.")
    anchors = []
    for level, ((rows, columns), (step_y, step_x)) in enumerate(
        zip(maps, level_strides(config, canvas, maps), strict=True)
    ):
        base = level_base_anchors(config, level)
        ys = torch.arange(rows, dtype=torch.float32) * step_y
        xs = torch.arange(columns, dtype=torch.float32) * step_x
        shift_y, shift_x = torch.meshgrid(ys, xs, indexing="ij")
        shifts = torch.stack((shift_x, shift_y, shift_x, shift_y), dim=-1).reshape(-1, 1, 4)
        anchors.append((shifts + base).reshape(-1, 4))
    return torch.cat(anchors).to(device)


def anchor_locations(config: AnchorConfig, maps: tuple[tuple[int, int], ...], indices: Tensor) -> AnchorLocations:
    """Return level, cell and shape of anchors from their rows in ``grid_anchors``, int64 [R].

    maps: (height, width) of each level's map.
    """
    device, per_cell = indices.device, config.per_cell
    shapes = torch.tensor(maps, device=device).reshape(-1, 2)
    ends = (shapes.prod(dim=1) * per_cell).cumsum(0)
    levels = torch.bucketize(indices, ends, right=True)
    starts = torch.cat((ends.new_zeros(1), ends))
    in_level = indices - starts[levels]
    cell, anchor = in_level // per_cell, in_level % per_cell
    columns = shapes[levels, 1]
    sizes = torch.tensor(config.sizes, dtype=torch.float32, device=device)
    ratios = torch.tensor(config.ratios, dtype=torch.float32, device=device)
    # Ratio-major: the sizes of a ratio lie side by side.
    per_ratio = sizes.shape[1]
    return AnchorLocations(
        levels, cell // columns, cell % columns, sizes[levels, anchor % per_ratio], ratios[anchor // per_ratio]
    )
