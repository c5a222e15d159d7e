"""Draw the RPN's objectness as colours over the image, level by level. Blocking: the image processes call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.rendering.boxes import draw_caption

if TYPE_CHECKING:  # it imports torch
    from model.structures import HeatMap, ImageArray

TILE = 640  # longest side in pixels of each copy of the image, where there are several
# Objectness 0 is nearly the grey image; then blue, yellow, red. They differ in lightness too, for colour-blind readers.
_STOPS = (0.0, 0.25, 0.6, 1.0)
_COLOURS = ((20, 20, 80), (40, 90, 220), (255, 220, 60), (230, 30, 30))
_OPACITY = (0.15, 0.55, 0.7, 0.8)


class ObjectnessMap(NamedTuple):
    """``model.structures.HeatMap`` with ``values`` in NumPy: float32 [Hl, Wl]."""

    level: int
    values: NDArray[np.float32]
    origin: tuple[float, float]
    step: tuple[float, float]


def draw_heat_maps(image: ImageArray, maps: Sequence[HeatMap | ObjectnessMap]) -> Image.Image:
    """Return ``image`` in grey under the colours of ``maps``: for several, a row of copies, one for each map.

    image: uint8 [H, W, 3] RGB. maps: at least one. A single map is drawn at the size of ``image``. Each copy is
    captioned with its level.
    """
    if len(maps) == 1:
        return _draw_tile(image, maps[0], 1.0)
    height, width = image.shape[:2]
    tiles = [_draw_tile(image, heat_map, min(1.0, TILE / max(height, width))) for heat_map in maps]
    row = Image.new("RGB", (sum(tile.width for tile in tiles), tiles[0].height))
    for number, tile in enumerate(tiles):
        row.paste(tile, (number * tile.width, 0))
    return row


def _draw_tile(image: ImageArray, heat_map: HeatMap | ObjectnessMap, scale: float) -> Image.Image:
    original = Image.fromarray(image)
    size = max(1, round(original.width * scale)), max(1, round(original.height * scale))
    grey = np.asarray(original.resize(size).convert("L"), dtype=np.float32)[..., None]
    values = _interpolate(heat_map, size, (original.width / size[0], original.height / size[1]))
    colours = np.stack([np.interp(values, _STOPS, channel) for channel in zip(*_COLOURS, strict=True)], axis=2)
    opacity = np.interp(values, _STOPS, _OPACITY)[..., None]
    tile = Image.fromarray((grey * (1 - opacity) + colours * opacity).round().astype(np.uint8))
    draw_caption(tile, (0, 0), f"level {heat_map.level}", heat_map.level)
    return tile


def _interpolate(
    heat_map: HeatMap | ObjectnessMap, size: tuple[int, int], pixel: tuple[float, float]
) -> NDArray[np.float32]:
    """Return the map's value at each pixel of a tile, float32 [height, width], bilinear between the cells' centres.

    size: width and height of the tile; pixel: width and height of a tile's pixel, in pixels of the image.
    """
    # Repeat the outermost cells: Pillow gives no values beyond their centres.
    padding = 1
    cells = Image.fromarray(np.pad(np.asarray(heat_map.values), padding, mode="edge"))
    matrix: list[float] = []
    for axis in (0, 1):
        # The affine matrix maps a pixel's centre in the tile to a position in the map, where cell i is at i + 0.5.
        row = [0.0, 0.0, padding + 0.5 - heat_map.origin[axis] / heat_map.step[axis]]
        row[axis] = pixel[axis] / heat_map.step[axis]
        matrix += row
    values = cells.transform(size, Image.Transform.AFFINE, tuple(matrix), resample=Image.Resampling.BILINEAR)
    return np.asarray(values, dtype=np.float32)
