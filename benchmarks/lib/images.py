"""Images to measure with: the web page's photographs, noise, and shapes drawn from a seed."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.lib.results import ROOT
from model.structures import ImageArray

Size = tuple[int, int]  # height, width
EXAMPLES = ROOT / "service/web/examples"
# Cameras, screens, phones, a square, a panorama: width x height.
MIXED_SIZES = ((640, 480), (480, 640), (1280, 720), (300, 300), (1024, 683), (90, 60), (1600, 400), (800, 1200))


def encode(image: Image.Image, format: str = "JPEG", quality: int = 85) -> bytes:
    """Return an image as a file."""
    file = io.BytesIO()
    image.save(file, format, quality=quality)
    return file.getvalue()


def cat() -> Image.Image:
    """Return the photograph of a cat that comes with the web page."""
    return Image.open(EXAMPLES / "chelsea.jpg").convert("RGB")


def cat_jpeg(width: int = 640, height: int = 480) -> bytes:
    """Return the cat as a JPEG of that size."""
    return encode(cat().resize((width, height)), quality=90)


def photographs(count: int) -> list[ImageArray]:
    """Return ``count`` crops of the web page's two photographs, each uint8 [480, 640, 3]."""
    crops = []
    for number in range(count):
        image = Image.open(EXAMPLES / ("chelsea.jpg", "camera.jpg")[number % 2]).convert("RGB")
        margin = 4 * (number // 2)
        crop = image.crop((margin, margin, image.width - margin, image.height - margin))
        crops.append(np.array(crop.resize((640, 480))))
    return crops


def noise_jpeg(width: int, height: int, seed: int) -> bytes:
    """Return smooth noise, which compresses about as photographs do, as a JPEG."""
    shape = (height // 16 + 2, width // 16 + 2, 3)
    coarse = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return encode(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def mixed_jpegs(count: int) -> list[bytes]:
    """Return ``count`` JPEGs of noise that go through ``MIXED_SIZES``."""
    return [noise_jpeg(*MIXED_SIZES[number % len(MIXED_SIZES)], seed=number) for number in range(count)]


def drawn_image(height: int, width: int, seed: int = 0) -> ImageArray:
    """Return blurred noise at several scales with rectangles on it: detectors find ordinary boxes in it."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 120.0)
    for cells in (3, 9, 30, 90):
        coarse = rng.integers(0, 256, (min(cells, height), min(cells, width), 3), dtype=np.uint8)
        blurred = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image += (np.asarray(blurred, np.float64) - 127.5) * 0.35
    for _ in range(24):
        rows, columns = rng.integers(height // 24 + 2, height // 2 + 3), rng.integers(width // 24 + 2, width // 2 + 3)
        top, left = rng.integers(0, height - rows // 2), rng.integers(0, width - columns // 2)
        image[top : top + rows, left : left + columns] += rng.normal(0, 45, 3)
    return image.clip(0, 255).astype(np.uint8)


def size_for(canvas: Size, canvas_for: Callable[[int, int], Size]) -> Size:
    """Return the size of an image that is resized onto exactly that canvas: about three quarters of it.

    canvas_for: the detector's, from height and width. Raises ``ValueError`` where no size fits.
    """
    height = canvas[0] * 3 // 4
    for width in range(canvas[1] * 3 // 4, canvas[1] * 3 // 8, -1):
        if canvas_for(height, width) == canvas:
            return height, width
    raise ValueError(f"No image is resized onto a canvas of {canvas}.")
