"""Decode an image file from an untrusted client to RGB, within limits.

The format is read from its first bytes, never from a name or a header, and Pillow is offered that one format only. The
header is read in time linear in its length, and what decoding would take is known from it, before a pixel is decoded.
Everything here is blocking work, for a process that can be killed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from service.errors import BadImage, BadRequest, ServiceError, TooLarge, UnsupportedImage
from service.images import jpeg, png, tiff, webp
from service.images.convert import SWAPS_SIDES, as_stored, write_rgb
from service.images.cost import MAX_SECONDS, DecodeCost, jpeg_cost, pillow_cost, webp_cost
from service.images.formats import SUPPORTED, sniff_format
from service.images.metadata import read_orientation

if TYPE_CHECKING:  # it imports torch
    from model.structures import ImageArray

# A progressive JPEG stores each pixel in about ten passes, and is decoded in as many. A pass may be a few bytes long,
# so a malicious file can hold thousands, each of which takes as long to decode as a whole image.
MAX_PASSES = 16  # of an image of ``max_pixels``; of smaller ones more
MAX_SCANS = 100  # of any image
MAX_STORED = 4  # for each pixel of ``max_pixels``, pixels of tiles that reach out of the image
MAX_READS = 300_000  # Pillow reads a header in pieces, each a call; the file of a large image needs a few thousand
PARTS = (8, 4, 2)  # a JPEG may be decoded at an eighth, a quarter or a half


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
    """Decode ``data`` to RGB in this process, as shown: EXIF orientation applied, alpha over white.

    Returns uint8 pixels [h, w, 3] of the whole image, and the (height, width) of the image as shown, in pixels: h and w
    are those, or down to an eighth of them where ``canvas_for`` allows it.

    16-bit grey is scaled to 8; greyscale, palette and CMYK are converted; of an animation, the first frame.
    canvas_for: returns (height, width) of the canvas for an image of that height and width; see
    ``EncodedImage.decoded_size``. None: in full. Raises as ``open_image`` and ``EncodedImage.decode_into`` do.
    """
    image = open_image(data, max_pixels=max_pixels)
    canvas = canvas_for(image.height, image.width) if canvas_for is not None else None
    pixels = np.empty((*image.decoded_size(canvas), 3), np.uint8)
    image.decode_into(pixels, canvas)
    return pixels, (image.height, image.width)


def open_image(data: bytes, *, max_pixels: int) -> EncodedImage:
    """Read and check the header of an image file.

    Raises ``BadRequest`` (no bytes), ``UnsupportedImage``, ``TooLarge`` (over ``max_pixels``, or its decoding would
    take longer than ``MAX_SECONDS`` of processor time), ``BadImage``.
    """
    if not data:
        raise BadRequest("The body is empty; send the image's bytes (curl --data-binary @image.jpg).")
    format = sniff_format(data)
    if format is None:
        raise UnsupportedImage(f"This is not an image that the service can read; send {SUPPORTED}.")
    with _report_damage(format):
        file = _FILES.get(format, _PillowFile)(data, format, max_pixels)
        image = EncodedImage(format, file)
        if file.cost(1).seconds > MAX_SECONDS:
            raise TooLarge(
                f"Decoding this {format} image of {image.width} x {image.height} pixels would take too long; "
                "send a smaller one, or a JPEG."
            )
        return image


class EncodedImage:
    """An image file whose header has been read and checked; ``open_image`` makes it.

    format: Pillow's name. height, width: pixels of the image as shown, EXIF orientation applied.
    """

    def __init__(self, format: str, file: _ImageFile) -> None:
        self.format = format
        swapped = file.orientation in SWAPS_SIDES
        self.height, self.width = (file.width, file.height) if swapped else (file.height, file.width)
        self._file = file

    def decoded_size(self, canvas: tuple[int, int] | None) -> tuple[int, int]:
        """Return height and width of the pixels that decoding gives: of the image, or reduced for ``canvas``.

        A JPEG is decoded at a half, a quarter or an eighth, never below ``canvas`` (height, width), where that is at
        most half the image; this saves most of the work. None: in full.
        """
        part = self._part(canvas)
        return self.height // part, self.width // part

    def cost(self, canvas: tuple[int, int] | None) -> DecodeCost:
        """Return an upper estimate of what decoding for ``canvas`` takes, the pixels that it gives included."""
        return self._file.cost(self._part(canvas))

    def decode_into(self, pixels: ImageArray, canvas: tuple[int, int] | None) -> None:
        """Write the image as shown to ``pixels``, uint8 [*decoded_size(canvas), 3], C-contiguous, as RGB; once only.

        Raises ``BadImage``, ``TooLarge`` (no memory is left).
        """
        with _report_damage(self.format):
            self._file.write(as_stored(pixels, self._file.orientation), self._part(canvas))

    def _part(self, canvas: tuple[int, int] | None) -> int:
        if canvas is None or self.format != "JPEG":
            return 1
        scale = min(self.height // canvas[0], self.width // canvas[1])
        return next((part for part in PARTS if scale >= part), 1)


class _ImageFile(Protocol):
    """A file of one format. width, height: pixels, as stored; orientation: EXIF 2.32, tag 274, still to be applied."""

    width: int
    height: int
    orientation: int

    def cost(self, part: int) -> DecodeCost:
        """Return what decoding at one ``part``-th of the size takes."""

    def write(self, pixels: ImageArray, part: int) -> None:
        """Write the image as stored to ``pixels``, uint8 [height // part, width // part, 3], which may be a view."""


class _JpegFile:
    def __init__(self, data: bytes, format: str, max_pixels: int) -> None:
        self._data, self._header = data, jpeg.read_header(data)
        self.width, self.height = self._header.width, self._header.height
        self.orientation = self._header.orientation
        _check_size(self.width, self.height, max_pixels)
        most = min(MAX_SCANS, MAX_PASSES * max_pixels // (self.width * self.height))
        self._passes = jpeg.count_passes(data, self._header, most)
        if self._passes > most:
            raise BadImage("The image is stored in more passes than any program writes; save it again.")

    def cost(self, part: int) -> DecodeCost:
        return jpeg_cost(self._header, self._passes, len(self._data), part)

    def write(self, pixels: ImageArray, part: int) -> None:
        jpeg.decode_jpeg(self._data, self._header, part, pixels)


class _WebpFile:
    def __init__(self, data: bytes, format: str, max_pixels: int) -> None:
        self._data, self._header = data, webp.read_header(data)
        self.width, self.height = self._header.width, self._header.height
        self.orientation = self._header.orientation
        _check_size(self.width, self.height, max_pixels)

    def cost(self, part: int) -> DecodeCost:
        return webp_cost(self._header, len(self._data))

    def write(self, pixels: ImageArray, part: int) -> None:
        with _open_with_pillow(self._data, "WEBP") as image:
            if image.size != (self.width, self.height):
                raise ValueError("two sizes in one file")
            image.load()
            write_rgb(image, pixels)


class _PillowFile:
    """A file whose header Pillow reads without decoding: PNG, GIF, BMP or TIFF."""

    def __init__(self, data: bytes, format: str, max_pixels: int) -> None:
        self.orientation = 1
        self._bytes, self._layout = len(data), None
        late = png.check_chunks(data) if format == "PNG" else []
        if format == "TIFF":
            tiff.check_directory(data)
        self._image = _open_with_pillow(data, format)
        self.width, self.height = self._image.size
        _check_size(self.width, self.height, max_pixels)
        if isinstance(self._image, PngImageFile):
            png.read_late_metadata(self._image, late)
            self.orientation = read_orientation(self._image.info)
        elif isinstance(self._image, TiffImageFile):
            self._layout = tiff.read_layout(self._image)
            self.orientation = tiff.take_orientation(self._image)
            if self._layout.part_pixels > max_pixels:
                raise TooLarge(
                    f"The image is stored in tiles of {self._layout.part_pixels} pixels, over the limit of "
                    f"{max_pixels}; save it with smaller tiles."
                )
            if self._layout.stored_pixels > MAX_STORED * max_pixels:
                raise TooLarge(
                    f"The tiles of the image have {self._layout.stored_pixels} pixels in all, far more than the "
                    "image; save it with smaller tiles."
                )

    def cost(self, part: int) -> DecodeCost:
        return pillow_cost(self._image, self._bytes, self._layout)

    def write(self, pixels: ImageArray, part: int) -> None:
        with self._image as image:
            image.load()
            write_rgb(image, pixels)


_FILES: dict[str, Callable[[bytes, str, int], _ImageFile]] = {"JPEG": _JpegFile, "WEBP": _WebpFile}


class _CountedFile(BytesIO):
    """A file in memory that may be read a limited number of times.

    Pillow reads headers in Python, a chunk, block or tag at a time, and some formats may have any number of them.
    """

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise BadImage("The image has more chunks or blocks than any program writes; save it again.")
        return super().read(size)


def _open_with_pillow(data: bytes, format: str) -> ImageFile.ImageFile:
    # The header of a bitmap is of fixed length, and its run-length decoder reads each run in Python: it has a cost.
    image = Image.open(BytesIO(data) if format == "BMP" else _CountedFile(data), formats=[format])
    assert isinstance(image, ImageFile.ImageFile)
    if len(image.tile) == 1:
        # Pillow joins blocks of 64 KiB until they hold a row, in time that grows with the square of the row's length.
        image.decodermaxblock = max(image.decodermaxblock, len(data))
    return image


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadImage(f"The image is {width} x {height} pixels; it must have at least one.")
    if width * height > max_pixels:
        raise TooLarge(
            f"The image is {width} x {height} pixels, over the limit of {max_pixels} in all; send a smaller one."
        )


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


def _reason(error: Exception) -> str:
    """Return Pillow's own message in one short line, without addresses of objects."""
    message = str(error).split("<", 1)[0].strip().rstrip(".:")
    return message[:120] if message and isinstance(error, OSError | ValueError | SyntaxError) else "damaged data"
