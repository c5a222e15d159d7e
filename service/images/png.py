"""Walk the chunks of PNG files (W3C PNG, third edition), before Pillow reads each in Python."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import NamedTuple

from PIL.PngImagePlugin import PngImageFile

from service.errors import BadImage

MAX_CHUNKS = 100_000
MAX_COMPRESSED_CHUNKS = 256  # Pillow unpacks each to up to 1 MiB
MAX_LATE_BYTES = 2**20
_COMPRESSED = (b"iCCP", b"zTXt", b"iTXt")
_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


class Chunk(NamedTuple):
    """A chunk: its type, and where in the file its data begins and how long it is, in bytes."""

    kind: bytes
    start: int
    length: int


def check_chunks(data: bytes) -> list[Chunk]:
    """Refuse a PNG file with very many chunks, by ``BadImage``; return those with metadata behind the pixels."""
    late: list[Chunk] = []
    offset, compressed, pixels_seen, late_bytes = 8, 0, False, 0
    for _ in range(MAX_CHUNKS):
        if offset + 8 > len(data):
            return late
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"IEND":
            return late
        compressed += kind in _COMPRESSED
        if compressed > MAX_COMPRESSED_CHUNKS:
            break
        if kind in (b"IDAT", b"fdAT"):
            pixels_seen = True
        elif pixels_seen and kind in _METADATA and late_bytes + length <= MAX_LATE_BYTES:
            late.append(Chunk(kind, offset + 8, length))
            late_bytes += length
        offset += 12 + length
    raise BadImage("The image has more chunks than any program writes; save it again.")


def read_late_metadata(image: PngImageFile, chunks: list[Chunk]) -> None:
    """Let Pillow read ``chunks`` into ``image.info``, as it does after decoding."""
    assert image.fp is not None
    assert image.png is not None
    position = image.fp.tell()
    for kind, start, length in chunks:
        image.fp.seek(start)
        with suppress(Exception):  # damaged metadata beside undamaged pixels
            image.png.call(kind, start, length)
    image.fp.seek(position)
