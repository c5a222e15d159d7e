"""Decode JPEG files (ITU T.81): a bounded walk over the header, then libjpeg-turbo without Pillow between.

Pillow keeps every segment of a header, and joins those of Exif in time that grows with their square. Its own decoder is
asked only where the file is CMYK or makes libjpeg warn: it decides which damage is tolerated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image

from service.errors import BadImage
from service.images.convert import copy_pixels, write_rgb
from service.images.metadata import read_orientation

if TYPE_CHECKING:  # it imports torch
    from model.structures import ImageArray

MAX_SEGMENTS = 100_000
_MARKER = re.compile(rb"\xff([\x01-\xfe])")  # any number of 0xff bytes may precede a marker (B.1.1.2)
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# In a scan's data, 0xff is followed by 0 if it is data, by D0 to D7 if the decoder restarts, and may be repeated.
_MARKER_IN_DATA = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_WITHOUT_LENGTH = frozenset((*range(0xD0, 0xDA), *range(0xF0, 0xFE), 0xC8))
# Of the application segments only JFIF's and Adobe's say how the pixels are to be understood.
_METADATA = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True)
class JpegHeader:
    """What the segments before the first scan say.

    width, height: pixels, as stored. components: 1, 3 or 4. orientation: EXIF 2.32, tag 274.
    buffered: whether all coefficients are held until the last scan has been read. arithmetic: whether the coding is
    arithmetic, which is slow, and not Huffman's. coefficients: for each pixel, 1 for
    grey and from 1.5 to 4 for colours. segments: (start, end) of those that matter to the pixels; the first scan starts
    where the last of them ends.
    """

    width: int
    height: int
    components: int
    orientation: int
    buffered: bool
    arithmetic: bool
    coefficients: float
    segments: tuple[tuple[int, int], ...]


def read_header(data: bytes) -> JpegHeader:
    """Read the header of a JPEG file in time linear in its length; raises ``ValueError``."""
    frame: tuple[int, bytes] | None = None
    info: dict[str, bytes] = {}
    segments = [(0, 2)]
    offset = 2
    for _ in range(MAX_SEGMENTS):
        match = _MARKER.search(data, offset)
        if match is None:
            raise ValueError("no image data")
        marker, offset = match[1][0], match.end()
        if marker < 0xC0:
            raise ValueError("no marker found")
        if marker in _WITHOUT_LENGTH:
            segments.append((match.start(), offset))
            continue
        end = offset + int.from_bytes(data[offset : offset + 2], "big")
        if end < offset + 2 or end > len(data):
            raise ValueError("truncated header")
        if marker == _START_OF_SCAN:
            if frame is None:
                raise ValueError("no frame before the scan")
            return _describe(*frame, data[offset + 2], info, (*segments, (match.start(), end)))
        if marker in _START_OF_FRAME:
            frame = marker, data[offset + 2 : end]
        elif marker == 0xE1 and data.startswith(_EXIF, offset + 2):
            info.setdefault("exif", data[offset + 2 : end])
        elif marker == 0xE1 and data.startswith(_XMP, offset + 2):
            info["xmp"] = data[offset + 2 + len(_XMP) : end]
        if marker not in _METADATA:
            segments.append((match.start(), end))
        offset = end
    raise _too_many_segments()


def _too_many_segments() -> BadImage:
    return BadImage("The image has more segments than any program writes; save it again.")


def count_passes(data: bytes, header: JpegHeader, most: int) -> int:
    """Return the number of scans of a JPEG, or ``most`` + 1 if there are more.

    Like libjpeg it skips segments by their length, and what belongs to no segment (B.1.1.5), and stops at the end of
    the image, behind which there may be another, or a video.
    """
    passes, offset = 1, header.segments[-1][1]
    for _ in range(MAX_SEGMENTS):
        match = _MARKER_IN_DATA.search(data, offset)
        if match is None:
            return passes
        marker, offset = match[1][0], match.end()
        if marker == _END_OF_IMAGE:
            return passes
        if marker == _START_OF_SCAN:
            passes += 1
            if passes > most:
                return passes
        if marker >= 0xC0 and marker not in _WITHOUT_LENGTH:
            offset += max(2, int.from_bytes(data[offset : offset + 2], "big"))
    raise _too_many_segments()


def decode_jpeg(data: bytes, header: JpegHeader, part: int, pixels: ImageArray) -> None:
    """Decode to ``pixels``, uint8 [height // part, width // part, 3], RGB as stored, which may be a view.

    part: 1, or 2, 4 or 8 to invert only the low frequencies of each 8 x 8 block. The last row and column of blocks may
    then reach out of the image. They do so by less than a pixel of the reduced image, but that pixel is part image,
    part padding: the result is cropped to the image's true extent, so that every point stays where it was.
    Raises what Pillow raises for a damaged file.
    """
    size = -(-header.height // part), -(-header.width // part)
    direct = pixels.shape[:2] == size and pixels.flags.c_contiguous
    decoded = pixels if direct else np.empty((*size, 3), np.uint8)
    if header.components != 4 and _decode_strictly(data, size, part, decoded):
        if direct:
            return
        if pixels.shape[:2] == size:
            copy_pixels(decoded, pixels)
            return
        write_rgb(_crop(Image.fromarray(decoded), header, part), pixels)
        return
    del decoded
    with Image.open(BytesIO(_without_metadata(data, header)), formats=["JPEG"]) as image:
        image.draft(None, (max(1, header.width // part), max(1, header.height // part)))
        if image.size != size[::-1]:
            raise ValueError("two sizes in one file")
        image.load()
        write_rgb(_crop(image, header, part), pixels)


def _decode_strictly(data: bytes, size: tuple[int, int], part: int, pixels: ImageArray) -> bool:
    """Decode without Pillow; return False where libjpeg fails, or warns of damage."""
    height, width = size
    try:
        simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=part, buffer=pixels)
    except ValueError:
        return False
    return True


def _crop(image: Image.Image, header: JpegHeader, part: int) -> Image.Image:
    size = header.width // part, header.height // part
    if image.size == size:
        return image
    box = (0, 0, header.width / part, header.height / part)
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def _describe(
    marker: int, frame: bytes, scan_components: int, info: dict[str, bytes], segments: tuple[tuple[int, int], ...]
) -> JpegHeader:
    """Return the header; frame: the frame header (B.2.2) after its length."""
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise ValueError("truncated header")
    precision, components = frame[0], frame[5]
    if precision != 8:
        raise ValueError(f"cannot handle {precision}-bit layers")
    if components not in (1, 3, 4):
        raise ValueError(f"cannot handle {components}-layer images")
    factors = [(factor >> 4, factor & 15) for factor in frame[7 : 6 + 3 * components : 3]]
    most = max(h for h, _ in factors) * max(v for _, v in factors)
    return JpegHeader(
        width=int.from_bytes(frame[3:5], "big"),
        height=int.from_bytes(frame[1:3], "big"),
        components=components,
        orientation=read_orientation(info),
        buffered=marker & 3 == 2 or scan_components < components,
        arithmetic=marker > 0xC8,
        coefficients=sum(h * v for h, v in factors) / max(1, most),
        segments=segments,
    )


def _without_metadata(data: bytes, header: JpegHeader) -> bytes:
    parts = [data[start:end] for start, end in header.segments]
    return b"".join([*parts, data[header.segments[-1][1] :]])
