"""Convert Pillow's images to RGB in bands, straight into the pixels that are returned, so that memory stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:  # it imports torch
    from model.structures import ImageArray

BAND_PIXELS = 2**18
SWAPS_SIDES = (5, 6, 7, 8)
"""The orientations (EXIF 2.32, tag 274) that exchange height and width."""


def as_stored(pixels: ImageArray, orientation: int) -> ImageArray:
    """Return a view of ``pixels`` [H, W, 3], an image as shown, in the row and column order of its file.

    orientation: EXIF 2.32, tag 274. Writing the stored image to the view turns it.
    """
    if orientation == 2:
        return pixels[:, ::-1]
    if orientation == 3:
        return pixels[::-1, ::-1]
    if orientation == 4:
        return pixels[::-1]
    if orientation == 5:
        return pixels.transpose(1, 0, 2)
    if orientation == 6:
        return pixels[:, ::-1].transpose(1, 0, 2)
    if orientation == 7:
        return pixels[::-1, ::-1].transpose(1, 0, 2)
    if orientation == 8:
        return pixels[::-1].transpose(1, 0, 2)
    return pixels


def copy_pixels(source: ImageArray, target: ImageArray) -> None:
    """Copy ``source`` [h, w, 3] to ``target``, which may be a view with rows and columns exchanged."""
    if abs(target.strides[0]) >= abs(target.strides[1]):
        target[...] = source
        return
    # Few rows at a time and a channel at a time is four times faster where columns of the source become rows.
    for top in range(0, len(source), 16):
        for channel in range(3):
            target[top : top + 16, :, channel] = source[top : top + 16, :, channel]


def write_rgb(image: Image.Image, pixels: ImageArray) -> None:
    """Write ``image`` to ``pixels``, uint8 [H, W, 3], as RGB.

    Alpha lies over white, 16-bit grey is scaled to 8, and 32-bit samples are stretched.
    """
    convert = _converter(image)
    for left, top, right, bottom in _bands(*image.size):
        band = image.crop((left, top, right, bottom))
        copy_pixels(convert(band), pixels[top:bottom, left:right])


def _bands(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes (left, top, right, bottom) that cover an image, of at most ``BAND_PIXELS`` pixels each."""
    columns = min(width, BAND_PIXELS)
    rows = max(1, BAND_PIXELS // columns)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(width, left + columns), min(height, top + rows)


def _converter(image: Image.Image) -> Callable[[Image.Image], ImageArray]:
    """Return the function from a band of ``image`` to uint8 [h, w, 3]."""
    if image.mode.startswith("I;16"):
        return _scale_16_bits
    if image.mode in ("I", "F"):
        return _stretch(image)
    return _to_rgb


def _to_rgb(band: Image.Image) -> ImageArray:
    if band.has_transparency_data:
        layer = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(band if band.mode == "RGB" else band.convert("RGB"))


def _scale_16_bits(band: Image.Image) -> ImageArray:
    samples = np.asarray(band).astype(np.uint32)
    return _grey((samples * 255 + 32767) // 65535)


def _stretch(image: Image.Image) -> Callable[[Image.Image], ImageArray]:
    """Map the darkest sample of ``image`` to 0 and the brightest to 255: 32-bit samples have no agreed white."""

    def samples(band: Image.Image) -> NDArray[np.float64]:
        values: NDArray[np.float64] = np.asarray(band, dtype=np.float64)
        return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)

    ranges = [(values.min(), values.max()) for box in _bands(*image.size) for values in [samples(image.crop(box))]]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    scale = 255.0 / (high - low) if high > low else 0.0
    return lambda band: _grey(np.rint((samples(band) - low) * scale))


def _grey(values: NDArray[Any]) -> ImageArray:
    return np.broadcast_to(values.astype(np.uint8)[..., None], (*values.shape, 3))
