"""Read the header of WebP files (RFC 9649): Pillow allocates the whole image when it opens one."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import BadImage
from service.images.metadata import read_orientation

MAX_CHUNKS = 100_000
_METADATA = {b"EXIF": "exif", b"XMP ": "xmp"}  # by Pillow's names


@dataclass(frozen=True)
class WebpHeader:
    """What the chunks say. width, height: pixels, as stored. orientation: EXIF 2.32, tag 274.

    simple: a lossy image without alpha and animation, which takes less memory than the others.
    """

    width: int
    height: int
    orientation: int
    simple: bool


def read_header(data: bytes) -> WebpHeader:
    """Read the header of a WebP file; raises ``ValueError``."""
    first, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise ValueError("truncated header")
    if first == b"VP8X":
        width, height = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    elif first == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(body[start : start + 2], "little") & 0x3FFF for start in (6, 8))
    elif first == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise ValueError("no image data")
    info: dict[str, bytes] = {}
    kinds = {first}
    offset, chunks = 12, 0
    while first == b"VP8X" and offset + 8 <= len(data):
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise BadImage("The image has more chunks than any program writes; save it again.")
        kind, length = data[offset : offset + 4], int.from_bytes(data[offset + 4 : offset + 8], "little")
        kinds.add(kind)
        if kind in _METADATA:
            info.setdefault(_METADATA[kind], data[offset + 8 : offset + 8 + length])
        offset += 8 + length + (length & 1)
    return WebpHeader(width, height, read_orientation(info), kinds.isdisjoint((b"VP8L", b"ALPH", b"ANMF")))
