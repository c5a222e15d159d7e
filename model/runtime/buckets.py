"""Which canvas a picture is padded to. The picture and the configuration decide, never its batch mates (trap 18)."""

from __future__ import annotations

from typing import Literal

from model.config import TransformConfig
from model.transform import exact_canvas, resized_size

CanvasMode = Literal["buckets", "exact"]
Canvas = tuple[int, int]

# Long side over short side of the canvases: the square, then cameras' 4:3, 3:2, 5:3 and 16:9, and one for panoramas. A
# thinner picture than the last is shorter still, since its long side is the same, and fits there too.
_ASPECTS = ((1, 1), (4, 3), (3, 2), (5, 3), (16, 9), (5, 2))


class Canvases:
    """The choice of a canvas for each picture.

    ``buckets``: one of a few, so that shapes are few: images share batches, and code that oneDNN makes is reused.
    ``exact``: the smallest multiple of the stride that holds the resized picture, as torchvision pads a picture alone.
    """

    def __init__(self, config: TransformConfig, mode: CanvasMode = "buckets") -> None:
        if mode not in ("buckets", "exact"):
            raise ValueError(f"canvas must be 'buckets' or 'exact', not {mode!r}.")
        self.config = config
        self.mode = mode
        self.all: tuple[Canvas, ...] = self._buckets() if mode == "buckets" else ()

    def of(self, height: int, width: int) -> Canvas:
        """The canvas (height, width) for a picture of ``height`` x ``width`` pixels, both at least 1."""
        if height < 1 or width < 1:
            raise ValueError(f"A picture must have at least one pixel, not {height}x{width}.")
        if self.mode == "exact":
            return exact_canvas(self.config, height, width)
        rows, columns = resized_size(self.config, height, width)
        # Sorted by area: the first that fits is the smallest.
        return next(canvas for canvas in self.all if rows <= canvas[0] and columns <= canvas[1])

    def _buckets(self) -> tuple[Canvas, ...]:
        # The last aspect is where the short and the long side reach their limits together: no picture needs more.
        limits = (self.config.max_size, self.config.min_size)
        found = set()
        for long, short in (*_ASPECTS, limits):
            # Large numbers, so that flooring the ratio does not make a bucket a pixel too small.
            rows, columns = exact_canvas(self.config, short * 1200, long * 1200)
            found |= {(rows, columns), (columns, rows)}
        return tuple(sorted(found, key=lambda canvas: (canvas[0] * canvas[1], canvas)))
