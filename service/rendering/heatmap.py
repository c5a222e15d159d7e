"""Draw the RPN's objectness as colours over the image, level by level. Blocking: call it in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.rendering.boxes import draw_caption

if TYPE_CHECKING:  # it imports torch
    from model.structures import ImageArray

TILE = 640  # longest side in pixels of each copy of the image, where there are several
BAND_PIXELS = 2**18
# Objectness 0 is nearly the grey image; then blue, yellow, red. They differ in lightness too, for colour-blind readers.
_STOPS = (0.0, 0.25, 0.6, 1.0)
_COLOURS = ((20, 20, 80), (40, 90, 220), (255, 220, 60), (230, 30, 30))
_OPACITY = (0.15, 0.55, 0.7, 0.8)


@dataclass(frozen=True)
class HeatMap:
    """The RPN's objectness over one level's cells.

    values: float32 [Hl, Wl]. origin: (x, y) of the point that the anchors of cell (0, 0) are centred on; step: (x, y)
    from a cell to the next; image pixels.
    """

    level: int
    values: NDArray[np.float32]
    origin: tuple[float, float]
    step: tuple[float, float]


def draw_heat_maps(image: ImageArray, maps: Sequence[HeatMap]) -> Image.Image:
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


def _draw_tile(image: ImageArray, heat_map: HeatMap, scale: float) -> Image.Image:
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    tile = Image.fromarray(image)
    if tile.size != size:
        tile = tile.resize(size)
    # In bands, so that the values, colours and opacities of all pixels are never in memory together.
    rows = max(1, BAND_PIXELS // size[0])
    columns = min(size[0], BAND_PIXELS)
    for top in range(0, size[1], rows):
        for left in range(0, size[0], columns):
            box = (left, top, min(left + columns, size[0]), min(top + rows, size[1]))
            grey = np.asarray(tile.crop(box).convert("L"), dtype=np.float32)[..., None]
            values = _interpolate(heat_map, box, (width / size[0], height / size[1]))
            colours = np.stack([np.interp(values, _STOPS, channel) for channel in zip(*_COLOURS, strict=True)], axis=2)
            opacity = np.interp(values, _STOPS, _OPACITY)[..., None]
            band = (grey * (1 - opacity) + colours * opacity).round().astype(np.uint8)
            tile.paste(Image.fromarray(band), box[:2])
    draw_caption(tile, (0, 0), f"level {heat_map.level}", heat_map.level)
    return tile


def _interpolate(heat_map: HeatMap, box: tuple[int, int, int, int], pixel: tuple[float, float]) -> NDArray[np.float32]:
    """Return the map's value at each pixel of a box of a tile, float32 [h, w], bilinear between the cells' centres.

    box: left, top, right, bottom; pixel: width and height of a tile's pixel, in pixels of the image.
    """
    # Repeat the outermost cells: Pillow gives no values beyond their centres.
    padding = 1
    cells = Image.fromarray(np.pad(np.asarray(heat_map.values, np.float32), padding, mode="edge"))
    matrix: list[float] = []
    for axis in (0, 1):
        # The affine matrix maps a pixel's centre in the box to a position in the map, where cell i is at i + 0.5.
        scale = pixel[axis] / heat_map.step[axis]
        row = [0.0, 0.0, padding + 0.5 - heat_map.origin[axis] / heat_map.step[axis] + box[axis] * scale]
        row[axis] = scale
        matrix += row
    size = box[2] - box[0], box[3] - box[1]
    values = cells.transform(size, Image.Transform.AFFINE, tuple(matrix), resample=Image.Resampling.BILINEAR)
    return np.asarray(values, dtype=np.float32)
