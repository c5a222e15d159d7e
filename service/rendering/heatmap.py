"""Objectness as colour over the picture: where the RPN looked, level by level. Blocking work for a thread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.structures import HeatMap, ImageArray
from service.rendering.boxes import label

TILE = 640  # longest side of each copy of the picture, where there are several
# Objectness 0 is nearly the grey picture; then blue, yellow, red: dark to light to warm, told apart without colour too.
_STOPS = (0.0, 0.25, 0.6, 1.0)
_COLOURS = ((20, 20, 80), (40, 90, 220), (255, 220, 60), (230, 30, 30))
_OPACITY = (0.15, 0.55, 0.7, 0.8)


def draw_heat_maps(picture: ImageArray, maps: Sequence[HeatMap]) -> Image.Image:
    """``picture`` in grey under the colours of one map, or a row of copies, one a map, each named by its level.

    picture: uint8 [H, W, 3] RGB. maps: at least one. A single map is drawn at the picture's own size.
    """
    if len(maps) == 1:
        return _tile(picture, maps[0], 1.0)
    height, width = picture.shape[:2]
    tiles = [_tile(picture, heat, min(1.0, TILE / max(height, width))) for heat in maps]
    row = Image.new("RGB", (sum(tile.width for tile in tiles), tiles[0].height))
    for number, tile in enumerate(tiles):
        row.paste(tile, (number * tile.width, 0))
    return row


def _tile(picture: ImageArray, heat: HeatMap, scale: float) -> Image.Image:
    image = Image.fromarray(picture)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    grey = np.asarray(image.resize(size).convert("L"), dtype=np.float32)[..., None]
    values = _over(heat, size, (image.width / size[0], image.height / size[1]))
    colours = np.stack([np.interp(values, _STOPS, channel) for channel in zip(*_COLOURS, strict=True)], axis=2)
    opacity = np.interp(values, _STOPS, _OPACITY)[..., None]
    tile = Image.fromarray((grey * (1 - opacity) + colours * opacity).round().astype(np.uint8))
    label(tile, (0, 0), f"level {heat.level}", heat.level)
    return tile


def _over(heat: HeatMap, size: tuple[int, int], pixel: tuple[float, float]) -> NDArray[np.float32]:
    """The map's value at each pixel of a tile, float32 [height, width], interpolated between cells.

    size: width and height of the tile; pixel: x and y of its pixels in pixels of the picture.
    """
    # A rim that repeats the edge: Pillow has nothing to say beyond the centres of the outermost cells.
    rim = 1
    cells = Image.fromarray(np.pad(heat.values.numpy(), rim, mode="edge"))
    matrix: list[float] = []
    for axis in (0, 1):
        # Pillow asks: which place of the map (cell i has its centre at i + 0.5) lies under this pixel's centre?
        row = [0.0, 0.0, rim + 0.5 - heat.origin[axis] / heat.step[axis]]
        row[axis] = pixel[axis] / heat.step[axis]
        matrix += row
    over = cells.transform(size, Image.Transform.AFFINE, tuple(matrix), resample=Image.Resampling.BILINEAR)
    return np.asarray(over, dtype=np.float32)
