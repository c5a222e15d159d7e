"""Decode an image file from an untrusted client to RGB, within limits.

The format is read from its first bytes, never from a name or a header, and Pillow is offered that one format
only. The size is checked from the header before a pixel is decoded. Everything here is blocking work for a thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import BadImage, BadRequest, ServiceError, TooLarge, UnsupportedImage
from service.images.cost import DecodeCost
from service.images.formats import SUPPORTED, sniff_format

if TYPE_CHECKING:  # it imports torch
    from model.structures import ImageArray

# A progressive JPEG stores each pixel in about ten passes, and is decoded in as many. A pass may be a few bytes long,
# so a malicious file can hold thousands, each of which takes as long to decode as a whole image.
MAX_PASSES = 16
_ORIENTATION = 0x0112  # EXIF 2.32, tag 274
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)  # the orientations that exchange height and width


def prepare_pillow() -> None:
    """Switch off Pillow's process-wide pixel limit, and keep its warnings about files out of stderr.

    Pillow warns above its own limit and refuses above twice that; ours is a setting and is always checked here.
    """
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes, *, max_pixels: int) -> ImageArray:
    """Decode ``data`` in full to uint8 [H, W, 3], RGB; raises as ``decode_image`` does."""
    pixels, _ = decode_image(data, max_pixels=max_pixels)
    return pixels


def decode_image(
    data: bytes, *, max_pixels: int, canvas_for: Callable[[int, int], tuple[int, int]] | None = None
) -> tuple[ImageArray, tuple[int, int]]:
    """Decode ``data`` to RGB, as shown: EXIF orientation applied, alpha over white.

    Returns uint8 pixels [h, w, 3] of the whole image, and the (height, width) of the image as shown, in pixels: h and w
    are those, or down to an eighth of them where ``canvas_for`` allows it.

    16-bit grey is scaled to 8; greyscale, palette and CMYK are converted; of an animation, the first frame.
    canvas_for: returns (height, width) of the canvas for an image of that height and width. Where it is at most half
    the image, a JPEG is decoded at a half, a quarter or an eighth, never below the canvas, which saves most of the
    work. None: in full. Raises ``BadRequest`` (no bytes), ``UnsupportedImage``, ``TooLarge`` (over ``max_pixels``),
    ``BadImage``.
    """
    image = open_image(data, max_pixels=max_pixels)
    canvas = canvas_for(image.height, image.width) if canvas_for is not None else None
    pixels = np.empty((*image.decoded_size(canvas), 3), np.uint8)
    image.decode_into(pixels, canvas)
    return pixels, (image.height, image.width)


def open_image(data: bytes, *, max_pixels: int) -> EncodedImage:
    """Read and check the header of an image file.

    Raises ``BadRequest`` (no bytes), ``UnsupportedImage``, ``TooLarge`` (over ``max_pixels``, or would take longer than
    ``MAX_SECONDS``), ``BadImage``.
    """
    if not data:
        raise BadRequest("The body is empty; send the image's bytes (curl --data-binary @image.jpg).")
    format = sniff_format(data)
    if format is None:
        raise UnsupportedImage(f"This is not an image that the service can read; send {SUPPORTED}.")
    with _report_damage(format):
        return EncodedImage(data, format, max_pixels)


class EncodedImage:
    """An image file whose header has been read and checked; ``open_image`` makes it.

    format: Pillow's name. height, width: pixels of the image as shown, EXIF orientation applied.
    """

    def __init__(self, data: bytes, format: str, max_pixels: int) -> None:
        self.format = format
        self._data = data
        image = Image.open(BytesIO(data), formats=[format])
        width, height = image.size
        if width < 1 or height < 1:
            raise BadImage(f"The image is {width} x {height} pixels; it must have at least one.")
        if width * height > max_pixels:
            raise TooLarge(
                f"The image is {width} x {height} pixels, over the limit of {max_pixels} in all; send a smaller one."
            )
        if format == "JPEG" and _count_passes(data) * width * height > MAX_PASSES * max_pixels:
            raise BadImage("The image is stored in more passes than any program writes; save it again.")
        self._image = image
        self._orientation = 1 if format == "TIFF" else _orientation(image)  # of a TIFF Pillow applies it
        swapped = self._orientation in _SWAPS_SIDES
        self.height, self.width = (width, height) if swapped else (height, width)

    def decoded_size(self, canvas: tuple[int, int] | None) -> tuple[int, int]:
        """Return height and width of the pixels that decoding gives: of the image, or reduced for ``canvas``.

        A JPEG is decoded at a half, a quarter or an eighth, never below ``canvas`` (height, width), where that is at
        most half the image.
        """
        part = self._part(canvas)
        return self.height // part, self.width // part

    def cost(self, canvas: tuple[int, int] | None) -> DecodeCost:
        """Return an upper estimate of what decoding for ``canvas`` needs."""
        pixels = self.height * self.width
        return DecodeCost(pixels * 12, pixels * 6e-8)

    def decode_into(self, pixels: ImageArray, canvas: tuple[int, int] | None) -> None:
        """Write the image as RGB to ``pixels``, uint8 [*decoded_size(canvas), 3], C-contiguous; call it once.

        Raises ``BadImage``, ``TooLarge`` (no memory is left).
        """
        with _report_damage(self.format):
            shown: Image.Image = self._image
            if self.format == "JPEG" and canvas is not None:
                shown = _load_reduced(self._image, lambda *_: canvas)
            self._image.load()
            if self._orientation in _TRANSPOSE:
                shown = shown.transpose(_TRANSPOSE[self._orientation])
            pixels[:] = _to_rgb(shown)

    def _part(self, canvas: tuple[int, int] | None) -> int:
        if canvas is None or self.format != "JPEG":
            return 1
        scale = min(self.height // canvas[0], self.width // canvas[1])
        return next(part for part in (8, 4, 2, 1) if scale >= part or part == 1)


@contextmanager
def _report_damage(format: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a ``ServiceError``."""
    try:
        yield
    except ServiceError:
        raise
    except MemoryError:
        raise TooLarge("There is no memory left to decode this image; send a smaller one.") from None
    except Exception as error:  # Pillow raises many types for damaged bytes; to a client all mean the same
        raise BadImage(
            f"The bytes begin like a {format} image but cannot be decoded ({_reason(error)}); "
            "send the whole file, undamaged."
        ) from None


def _load_reduced(image: Image.Image, canvas_for: Callable[[int, int], tuple[int, int]]) -> Image.Image:
    """Load a JPEG (ITU T.81) by inverting only the low frequencies of each 8 x 8 block, if the canvas allows it.

    The last row and column of blocks may reach out of the image. They do so by less than a pixel of the reduced image,
    but that pixel is part image, part padding: the result is cropped to the image's true extent, so that every point
    stays where it was.
    """
    width, height = image.size
    swapped = _orientation(image) in _SWAPS_SIDES
    rows, columns = canvas_for(*((width, height) if swapped else (height, width)))
    if swapped:
        rows, columns = columns, rows
    drafted = image.draft(None, (columns, rows)) if min(width // columns, height // rows) >= 2 else None
    image.load()
    if drafted is None:
        return image
    _, extent = drafted
    size = int(extent[2]), int(extent[3])
    if image.size == size:
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box=extent)


def _count_passes(data: bytes) -> int:
    """Return the number of scans of a JPEG, with those of a thumbnail in its metadata.

    In the image's own data the two bytes occur only at the start of a scan (ITU T.81, B.1.1.5).
    """
    return data.count(b"\xff\xda")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata beside undamaged pixels: return the image as stored
        return 1


def _to_rgb(image: Image.Image) -> ImageArray:
    if image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint32)
        return _grey((samples * 255 + 32767) // 65535)
    if image.mode in ("I", "F"):
        return _grey(_stretch(np.asarray(image, dtype=np.float64)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # convert() would copy an RGB image


def _stretch(values: NDArray[np.float64]) -> NDArray[Any]:
    """Map the darkest sample to 0 and the brightest to 255: 32-bit samples have no agreed white."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if high <= low:
        return np.zeros_like(values)
    stretched: NDArray[np.float64] = np.rint((values - low) * (255.0 / (high - low)))
    return stretched


def _grey(values: NDArray[Any]) -> ImageArray:
    channel: ImageArray = values.astype(np.uint8)
    return np.repeat(channel[:, :, None], 3, axis=2)


def _reason(error: Exception) -> str:
    """Return Pillow's own message in one short line, without addresses of objects."""
    message = str(error).split("<", 1)[0].strip().rstrip(".:")
    return message[:120] if message and isinstance(error, OSError | ValueError | SyntaxError) else "damaged data"
