"""What decoding and drawing cost: peak memory and processor time, by format and mode.

Images, files and pixels are counted as they are. What decoders need beside them, and the times, are upper estimates;
``python -m benchmarks.serving.decode_cost`` prints them beside what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from service.images.jpeg import JpegHeader
    from service.images.tiff import TiffLayout
    from service.images.webp import WebpHeader

MAX_SECONDS = 4.0
"""An image that is estimated to take more processor time to decode is ``TooLarge``."""
BASE_BYTES = 16 * 2**20
"""What any job needs: bands of the conversion to RGB, buffers of decoders."""
BASE_SECONDS = 0.01

_RGB = 3
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # of a pixel; of others 4
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_NANOSECOND = 1e-9

# Bytes a pixel of libwebp's canvases and frames, and what Pillow copies of them; nanoseconds a pixel.
_WEBP_BYTES, _WEBP_SECONDS = 16.0, 90 * _NANOSECOND
_GIF_SECONDS = 30 * _NANOSECOND
_BMP_SECONDS = 22 * _NANOSECOND
# Pillow's run-length decoder is in Python: it fills the rest of a row by the pixel, and reads runs of two bytes.
_RLE_SECONDS, _RLE_BYTE_SECONDS = 300 * _NANOSECOND, 450 * _NANOSECOND
_TIFF_SECONDS = {"raw": 22 * _NANOSECOND, "lzma": 300 * _NANOSECOND}
_TIFF_COMPRESSED_SECONDS = 60 * _NANOSECOND
_TIFF_PART_SECONDS = 30e-6
_PNG_ROW_SECONDS = 70 * _NANOSECOND
# A pass of a JPEG, for each pixel. It needs hardly any bytes: refinement of zeros, or data that has ended.
_PASS_SECONDS, _ARITHMETIC_PASS_SECONDS = 2 * _NANOSECOND, 5 * _NANOSECOND
_ORDINARY_PASSES = 16
_PNG_ROW_BUFFERS = 5  # of the encoder: the row, the one before, and what filters make of it
_CONVERT_SECONDS = {"LAB": 150 * _NANOSECOND, "I": 60 * _NANOSECOND, "F": 60 * _NANOSECOND, "CMYK": 25 * _NANOSECOND}
_ALPHA_SECONDS = 25 * _NANOSECOND


@dataclass(frozen=True)
class DecodeCost:
    """An upper estimate of what a job takes.

    bytes: peak memory beyond that of an idle process: the file, all copies, and the pixels that are returned.
    seconds: processor time.
    """

    bytes: int
    seconds: float


def jpeg_cost(header: JpegHeader, passes: int, file_bytes: int, part: int) -> DecodeCost:
    """Return what decoding a JPEG at one ``part``-th of its size takes.

    passes: the number of its scans. Memory is that of Pillow, which decodes what makes libjpeg warn, for a second time:
    this is counted for passes that ordinary files do not have.
    """
    pixels = header.width * header.height
    height, width = -(-header.height // part), -(-header.width // part)
    held = _image_bytes(height, width, 4) * (2 if part > 1 else 1) + _RGB * height * width
    if header.buffered:
        held += round(2 * header.coefficients * pixels * 1.1)
    slow = header.buffered or header.arithmetic
    seconds = pixels * 7 * _NANOSECOND + file_bytes * (60 if slow else 20) * _NANOSECOND
    counted = passes + max(0, passes - _ORDINARY_PASSES)
    seconds += pixels * counted * (_ARITHMETIC_PASS_SECONDS if header.arithmetic else _PASS_SECONDS)
    if header.components == 4:
        seconds += pixels * _CONVERT_SECONDS["CMYK"]
    return DecodeCost(BASE_BYTES + held + 3 * file_bytes, BASE_SECONDS + seconds)


def webp_cost(header: WebpHeader, file_bytes: int) -> DecodeCost:
    """Return what decoding a WebP takes."""
    pixels = header.width * header.height
    held = _image_bytes(header.height, header.width, 4) + _RGB * pixels + round(_WEBP_BYTES * pixels)
    return DecodeCost(BASE_BYTES + held + 4 * file_bytes, BASE_SECONDS + _WEBP_SECONDS * pixels)


def pillow_cost(image: ImageFile, file_bytes: int, layout: TiffLayout | None) -> DecodeCost:
    """Return what decoding a PNG, GIF, BMP or TIFF takes, of which Pillow has read the header.

    layout: how the pixels of a TIFF are stored, None of the others.
    """
    pixels = image.width * image.height
    size = _image_bytes(image.height, image.width, _MODE_BYTES.get(image.mode, 4))
    held = size + _RGB * pixels
    seconds = pixels * _CONVERT_SECONDS.get(image.mode, 0.0)
    if image.mode in _ALPHA or "transparency" in image.info:
        seconds += pixels * _ALPHA_SECONDS
    # 0 for less than 8 bits a pixel; with 16 bits a sample, Pillow keeps the upper half of each but in grey.
    samples = {"1": 0, "P": 1, "L": 1, "I;16": 1, "LA": 2, "RGB": 3}.get(image.mode, 4)
    sample_bytes = samples * (2 if image.tile and ";16" in str(image.tile[0].args) else 1)
    if image.format == "PNG":
        seconds += pixels * (20 + 16 * sample_bytes) * _NANOSECOND + image.height * _PNG_ROW_SECONDS
    elif image.format == "GIF":
        seconds += pixels * _GIF_SECONDS
    elif image.format == "BMP" and image.info.get("compression") in (1, 2):
        held += 3 * pixels  # the runs as a growing array and as bytes
        seconds += pixels * _RLE_SECONDS + file_bytes * _RLE_BYTE_SECONDS
    elif image.format == "BMP":
        seconds += pixels * _BMP_SECONDS
    if layout is not None:
        held += size if layout.turned else 0
        compression = str(image.info.get("compression"))
        if compression != "raw":
            held += round(1.3 * max(4, sample_bytes) * layout.part_pixels)
        seconds += layout.stored_pixels * _TIFF_SECONDS.get(compression, _TIFF_COMPRESSED_SECONDS)
        seconds += layout.parts * _TIFF_PART_SECONDS
    return DecodeCost(BASE_BYTES + held + 3 * file_bytes, BASE_SECONDS + seconds)


def draw_cost(height: int, width: int, media_type: str) -> DecodeCost:
    """Return what drawing on uint8 [height, width, 3] and encoding as ``media_type`` take.

    Counted are the pixels that are drawn on, Pillow's image of them, and the encoded file, which is copied once: of a
    JPEG half a byte for each pixel, of a PNG 1.7, which is twice a photograph's. The encoder of PNG holds some rows.
    """
    pixels = height * width
    held = _RGB * pixels + _image_bytes(height, width, 4)
    if media_type != "image/jpeg":
        held += _PNG_ROW_BUFFERS * _RGB * width
    file = round(pixels * (0.5 if media_type == "image/jpeg" else 1.7))
    seconds = 2.0 + pixels * (100 if media_type == "image/jpeg" else 200) * _NANOSECOND
    return DecodeCost(BASE_BYTES + held + 2 * file, seconds)


def _image_bytes(height: int, width: int, pixel: int) -> int:
    """Return what Pillow allocates for an image: rows of whole words, and a pointer to each."""
    return height * (8 + -(-width * pixel // 4) * 4)
