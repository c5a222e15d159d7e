"""Images that a detector finds ordinary boxes in: blurred noise at several scales, and rectangles; from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image as Pillow

Image = np.ndarray[Any, np.dtype[np.uint8]]
Size = tuple[int, int]


def image(height: int, width: int, seed: int = 0) -> Image:
    """One uint8 RGB image [height, width, 3]."""
    rng = np.random.default_rng(seed)
    made = np.full((height, width, 3), 120.0)
    for cells in (3, 9, 30, 90):
        coarse = rng.integers(0, 256, (min(cells, height), min(cells, width), 3), dtype=np.uint8)
        blurred = Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC)
        made += (np.asarray(blurred, np.float64) - 127.5) * 0.35
    for _ in range(24):
        rows, columns = rng.integers(height // 24 + 2, height // 2 + 3), rng.integers(width // 24 + 2, width // 2 + 3)
        top, left = rng.integers(0, height - rows // 2), rng.integers(0, width - columns // 2)
        made[top : top + rows, left : left + columns] += rng.normal(0, 45, 3)
    return made.clip(0, 255).astype(np.uint8)


def images(size: Size, count: int) -> list[Image]:
    """``count`` different ones."""
    return [image(*size, seed=seed) for seed in range(count)]


def size_for(canvas: Size, canvas_for: Callable[[int, int], Size]) -> Size:
    """The size of an image that is resized onto exactly that canvas: about three quarters of it, as large as fits.

    canvas_for: the detector's. Raises ``ValueError`` where there is none.
    """
    height = canvas[0] * 3 // 4
    for width in range(canvas[1] * 3 // 4, canvas[1] * 3 // 8, -1):
        if canvas_for(height, width) == canvas:
            return height, width
    raise ValueError(f"No image is resized onto a canvas of {canvas}.")
