"""The choice of the canvas, the size in pixels that an image is padded to: one of a few, the buckets.

It depends on the image's size and the configuration alone. Padding changes what the network computes near an image's
edge: if the other images of a batch determined the canvas, they would change an image's detections.
"""

from __future__ import annotations

from typing import Literal

from model.config import TransformConfig
from model.transform import exact_canvas, resized_size

CanvasMode = Literal["buckets", "exact"]
Canvas = tuple[int, int]  # height and width in pixels

# Long side over short side of the buckets: the square, then cameras' 4:3, 3:2, 5:3 and 16:9, and one for panoramas. A
# thinner image than the last has the same long side and a shorter short one, so that it fits there too.
_ASPECTS = ((1, 1), (4, 3), (3, 2), (5, 3), (16, 9), (5, 2))


class Buckets:
    """The canvases of a configuration, and the one for each image.

    ``buckets``: a canvas is one of a few, so that images share batches, and oneDNN's kernels, which are compiled for
    one shape each, are reused.
    ``exact``: the canvas is the smallest multiple of the stride that holds the resized image, as torchvision pads an
    image alone.
    canvases: all of them, by area; empty for ``exact``.
    """

    def __init__(self, config: TransformConfig, mode: CanvasMode = "buckets") -> None:
        """Raise ``ValueError`` for an unknown mode."""
        if mode not in ("buckets", "exact"):
            raise ValueError(f"canvas must be 'buckets' or 'exact', not {mode!r}.")
        self.config = config
        self.mode = mode
        self.canvases: tuple[Canvas, ...] = _canvases(config) if mode == "buckets" else ()

    def canvas_for(self, height: int, width: int) -> Canvas:
        """Return the canvas (height, width) for an image of ``height`` x ``width`` pixels, both at least 1."""
        if height < 1 or width < 1:
            raise ValueError(f"An image must have at least one pixel, not {height}x{width}.")
        if self.mode == "exact":
            return exact_canvas(self.config, height, width)
        rows, columns = resized_size(self.config, height, width)
        # Sorted by area: the first that fits is the smallest.
        return next(canvas for canvas in self.canvases if rows <= canvas[0] and columns <= canvas[1])


def _canvases(config: TransformConfig) -> tuple[Canvas, ...]:
    """Return the buckets of a configuration, both orientations of each, by area."""
    # In the last aspect the short and the long side reach their limits together: no image needs a larger canvas.
    limits = (config.max_size, config.min_size)
    canvases = set()
    for long, short in (*_ASPECTS, limits):
        # Large numbers, so that flooring the ratio does not make a bucket a pixel too small.
        rows, columns = exact_canvas(config, short * 1200, long * 1200)
        canvases |= {(rows, columns), (columns, rows)}
    return tuple(sorted(canvases, key=lambda canvas: (canvas[0] * canvas[1], canvas)))
