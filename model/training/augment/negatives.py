"""Make images without objects from the training photographs, to lower the rate of false detections.

Photographs of VOC nearly always show one of its classes, and a detector trained on them alone detects one in a texture
or a drawing too. Three kinds, in equal shares: a piece of background enlarged until it fills the canvas; a small piece
of background repeated like wallpaper; and flat shapes in a photograph's colours. The first two use only background that
no box touches, ignored boxes included.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

_TRIES = 20  # windows drawn at random before shapes are drawn instead, which need no background


def make_negative(
    pixels: Tensor, boxes: npt.NDArray[np.float32], canvas: tuple[int, int], rng: np.random.Generator
) -> Tensor:
    """Make an image without an object, uint8 [3, H, W], from a photograph's pixels uint8 [3, h, w].

    boxes: float32 [G, 4] xyxy in its pixels, all that are labelled. canvas: H and W.
    """
    kind = rng.integers(3)
    if kind == 0 and (piece := crop_background(pixels, boxes, rng, 24, 120)) is not None:
        return _resize(piece, canvas)
    if kind == 1 and (piece := crop_background(pixels, boxes, rng, 6, 32)) is not None:
        return tile_wallpaper(piece, canvas, rng)
    return draw_shapes(pixels, canvas, rng)


def tile_wallpaper(piece: Tensor, canvas: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Tile [3, H, W] with a piece uint8 [3, h, w] at a random scale and angle, every second tile mirrored."""
    height, width = canvas
    angle, scale = rng.uniform(0, math.pi), rng.uniform(0.5, 3.0)
    y, x = (torch.arange(side, dtype=torch.float32) / scale for side in canvas)
    u = y[:, None] * math.sin(angle) + x[None] * math.cos(angle)
    v = y[:, None] * math.cos(angle) - x[None] * math.sin(angle)
    # Reflection at the borders of the unit square mirrors every second tile.
    grid = torch.stack((u / piece.shape[2], v / piece.shape[1]), dim=-1)[None]
    tiled = functional.grid_sample(
        piece[None].float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    stretched = (tiled[0] - tiled.mean()) * rng.uniform(1.0, 4.0) + rng.uniform(60, 195)
    return stretched.clamp(0, 255).to(torch.uint8).reshape(3, height, width)


def draw_shapes(pixels: Tensor, canvas: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Draw discs, bands and half planes, each of one colour, to [3, H, W]; half of the colours are the photograph's."""
    height, width = canvas
    y, x = (np.arange(side, dtype=np.float32) for side in canvas)
    image = np.empty((3, height, width), np.float32)
    image[:] = _draw_colour(pixels, rng)[:, None, None]
    for _ in range(int(rng.integers(1, 14))):
        angle = rng.uniform(0, 2 * math.pi)
        across = (y[:, None] - rng.uniform(0, height)) * math.sin(angle) + (x - rng.uniform(0, width)) * math.cos(angle)
        kind = rng.integers(3)
        if kind == 0:
            inside = across > 0
        elif kind == 1:
            inside = np.abs(across) < rng.uniform(1, 30)
        else:
            centre, radius = (rng.uniform(0, height), rng.uniform(0, width)), rng.uniform(4, max(canvas) / 3)
            inside = np.hypot(y[:, None] - centre[0], (x - centre[1]) * rng.uniform(0.4, 2.5)) < radius
        image[:, inside] = _draw_colour(pixels, rng)[:, None]
    return torch.from_numpy(image).to(torch.uint8)


def _draw_colour(pixels: Tensor, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw a colour, float32 [3] in [0, 255]: of a random pixel, or any."""
    if rng.random() < 0.5:
        return rng.uniform(0, 255, 3).astype(np.float32)
    row, column = (int(rng.integers(side)) for side in pixels.shape[1:])
    return pixels[:, row, column].numpy().astype(np.float32)


def crop_background(
    pixels: Tensor, boxes: npt.NDArray[np.float32], rng: np.random.Generator, low: int, high: int
) -> Tensor | None:
    """Crop a random square [3, s, s], low <= s <= high, that no box touches; return None where no attempt succeeds."""
    height, width = pixels.shape[1:]
    for _ in range(_TRIES):
        side = min(int(np.exp(rng.uniform(np.log(low), np.log(high)))), height, width)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        outside = (
            (boxes[:, 0] >= left + side) | (boxes[:, 2] <= left) | (boxes[:, 1] >= top + side) | (boxes[:, 3] <= top)
        )
        if outside.all():
            return pixels[:, top : top + side, left : left + side]
    return None


def _resize(piece: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Resize uint8 [3, h, w] to ``canvas`` (H, W)."""
    return functional.interpolate(piece[None].contiguous(), canvas, mode="bilinear")[0]
