"""Hostile files, generated here: cut at boundaries, bits flipped, sizes that lie, bombs, metadata, polyglots."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
LIES = (0, 1, 2**15, 2**16 - 1)


def sound(format: str) -> bytes:
    """A small image of noise in ``format``, of several scans, chunks or blocks where the format has them."""
    file, noise = io.BytesIO(), Image.effect_noise((70, 50), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"JPEG": {"progressive": True, "exif": exif}, "PNG": {"exif": exif}, "TIFF": {"compression": "tiff_lzw"}}
    noise.save(file, format, **options.get(format, {}))
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def boundaries(data: bytes, format: str) -> list[int]:
    """Offsets at which a part of the file begins."""
    if format == "JPEG":
        offsets = [i for i in range(len(data) - 1) if data[i] == 0xFF and data[i + 1] not in (0, 0xFF)]
    elif format == "PNG":
        offsets, at = [0], 8
        while at < len(data):
            offsets += [at, at + 4, at + 8]
            at += 12 + int.from_bytes(data[at : at + 4], "big")
    elif format == "WEBP":
        offsets = [0, 4, 8, 12, 16, 20, 30]
    elif format == "TIFF":
        first = int.from_bytes(data[4:8], "little")
        offsets = [
            0,
            4,
            8,
            first,
            *range(first + 2, first + 2 + 12 * int.from_bytes(data[first : first + 2], "little"), 12),
        ]
    else:
        offsets = [0, 2, 6, 10, 13, 14, 18, 22, 26, 30, 34, 54]
    return [at for at in offsets if at <= len(data)]


def truncated(format: str) -> Iterator[tuple[str, bytes]]:
    """Cut at each boundary, and a byte to either side of it."""
    data = sound(format)
    for at in sorted({at + shift for at in boundaries(data, format) for shift in (-1, 0, 1, 2) if at + shift >= 0}):
        yield f"{format} cut at {at}", data[:at]


def flipped(format: str, count: int = 150) -> Iterator[tuple[str, bytes]]:
    """A bit of the head turned over, or several anywhere."""
    data, dice = sound(format), random.Random(format)
    for turn in range(count):
        broken = bytearray(data)
        span = min(len(data), 96) if turn % 2 else len(data)
        for _ in range(1 + turn % 7):
            broken[dice.randrange(span)] ^= 1 << dice.randrange(8)
        yield f"{format} flip {turn}", bytes(broken)


def lying(format: str) -> Iterator[tuple[str, bytes]]:
    """Headers that claim another width and height than the data have."""
    data = sound(format)
    if format == "JPEG":
        at = next(i for i in boundaries(data, format) if data[i + 1] in (0xC0, 0xC2)) + 5
        spots, form = (at, at + 2), ">H"
    elif format == "PNG":
        spots, form = (16, 20), ">I"
    elif format == "GIF":
        spots, form = (6, 8), "<H"
    elif format == "BMP":
        spots, form = (18, 22), "<i"
    elif format == "WEBP":
        spots, form = (26, 28), "<H"
    else:
        return
    for width in LIES:
        for height in LIES:
            broken = bytearray(data)
            struct.pack_into(form, broken, spots[0], width)
            struct.pack_into(form, broken, spots[1], height)
            yield f"{format} says {width} x {height}", bytes(broken)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that unpack to much, in pixels, metadata or time."""
    start = b"\x89PNG\r\n\x1a\n"
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    much = zlib.compress(bytes(80 * 2**20), 9)
    rows = chunk(b"IDAT", zlib.compress(bytes(25 * 8))) + chunk(b"IEND", b"")
    yield "PNG zTXt bomb", start + head + chunk(b"zTXt", b"a\0\0" + much) + rows
    yield "PNG iCCP bomb", start + head + chunk(b"iCCP", b"a\0\0" + much) + rows
    yield "PNG IDAT bomb", start + head + chunk(b"IDAT", much) + chunk(b"IEND", b"")
    yield "PNG of a thousand texts", start + head + chunk(b"tEXt", b"k\0" + b"v" * 1000) * 1000 + rows
    data = sound("JPEG")
    scan = max(i for i in boundaries(data, "JPEG") if data[i + 1] == 0xDA)
    yield "JPEG of ten thousand scans", data[:scan] + data[scan : scan + 14] * 10_000 + data[scan:]
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    yield "PNG of 400 megapixels", file.getvalue()


def metadata() -> Iterator[tuple[str, bytes]]:
    """EXIF that makes no sense, around pixels that do."""
    plain = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(plain, "JPEG")
    for value in (0, 9, 65535):
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x0112, 3, 1, value, 0, 8)  # next IFD: itself
        yield f"orientation {value} in a loop", _with_app1(plain.getvalue(), exif)
    yield (
        "EXIF count over all",
        _with_app1(
            plain.getvalue(), b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIII", 0x0112, 12, 2**32 - 1, 8, 0)
        ),
    )
    yield "EXIF of noise", _with_app1(plain.getvalue(), b"Exif\0\0" + random.Random(1).randbytes(60_000))


def polyglots() -> Iterator[tuple[str, bytes]]:
    """Images that are something else too."""
    for format in FORMATS:
        yield f"{format} and a zip", sound(format) + b"PK\x03\x04" + bytes(100)
        yield f"{format} and a page", sound(format) + b"<script>alert(1)</script>"
    yield "a page that begins like a GIF", b"GIF89a/*<script>alert(1)</script>*/"
    yield "a PDF around a JPEG", b"%PDF-1.7\n" + sound("JPEG")


def everything() -> Iterator[tuple[str, bytes]]:
    """The whole corpus: a name and the bytes of each file."""
    for format in FORMATS:
        yield from truncated(format)
        yield from flipped(format)
        yield from lying(format)
    yield from bombs()
    yield from metadata()
    yield from polyglots()


def _with_app1(jpeg: bytes, data: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpeg[2:]
