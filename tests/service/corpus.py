"""Damaged and malicious image files, generated: truncated, bits flipped, wrong sizes, bombs, metadata, polyglots."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
SIZES = (0, 1, 2**15, 2**16 - 1)


def intact(format: str) -> bytes:
    """Return a small image of noise in ``format``, with several scans, chunks or blocks where the format has them."""
    file, noise = io.BytesIO(), Image.effect_noise((70, 50), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"JPEG": {"progressive": True, "exif": exif}, "PNG": {"exif": exif}, "TIFF": {"compression": "tiff_lzw"}}
    noise.save(file, format, **options.get(format, {}))
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def boundaries(data: bytes, format: str) -> list[int]:
    """Return the offsets at which a part of the file begins."""
    if format == "JPEG":
        offsets = [i for i in range(len(data) - 1) if data[i] == 0xFF and data[i + 1] not in (0, 0xFF)]
    elif format == "PNG":
        offsets, offset = [0], 8
        while offset < len(data):
            offsets += [offset, offset + 4, offset + 8]
            offset += 12 + int.from_bytes(data[offset : offset + 4], "big")
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
    return [offset for offset in offsets if offset <= len(data)]


def truncated(format: str) -> Iterator[tuple[str, bytes]]:
    """Yield files cut at each boundary, and near it."""
    data = intact(format)
    lengths = {offset + shift for offset in boundaries(data, format) for shift in (-1, 0, 1, 2)}
    for length in sorted(length for length in lengths if length >= 0):
        yield f"{format} cut at {length}", data[:length]


def flipped(format: str, count: int = 150) -> Iterator[tuple[str, bytes]]:
    """Yield files with flipped bits, in the head or anywhere."""
    data, rng = intact(format), random.Random(format)
    for number in range(count):
        broken = bytearray(data)
        span = min(len(data), 96) if number % 2 else len(data)
        for _ in range(1 + number % 7):
            broken[rng.randrange(span)] ^= 1 << rng.randrange(8)
        yield f"{format} flip {number}", bytes(broken)


def wrong_sizes(format: str) -> Iterator[tuple[str, bytes]]:
    """Yield files whose header has another width and height than the data."""
    data = intact(format)
    if format == "JPEG":
        offset = next(i for i in boundaries(data, format) if data[i + 1] in (0xC0, 0xC2)) + 5
        offsets, layout = (offset, offset + 2), ">H"
    elif format == "PNG":
        offsets, layout = (16, 20), ">I"
    elif format == "GIF":
        offsets, layout = (6, 8), "<H"
    elif format == "BMP":
        offsets, layout = (18, 22), "<i"
    elif format == "WEBP":
        offsets, layout = (26, 28), "<H"
    else:
        return
    for width in SIZES:
        for height in SIZES:
            broken = bytearray(data)
            struct.pack_into(layout, broken, offsets[0], width)
            struct.pack_into(layout, broken, offsets[1], height)
            yield f"{format} says {width} x {height}", bytes(broken)


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield small files that decode to many pixels or much metadata, or take long."""
    start = b"\x89PNG\r\n\x1a\n"
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    payload = zlib.compress(bytes(80 * 2**20), 9)
    rows = chunk(b"IDAT", zlib.compress(bytes(25 * 8))) + chunk(b"IEND", b"")
    yield "PNG zTXt bomb", start + head + chunk(b"zTXt", b"a\0\0" + payload) + rows
    yield "PNG iCCP bomb", start + head + chunk(b"iCCP", b"a\0\0" + payload) + rows
    yield "PNG IDAT bomb", start + head + chunk(b"IDAT", payload) + chunk(b"IEND", b"")
    yield "PNG of a thousand texts", start + head + chunk(b"tEXt", b"k\0" + b"v" * 1000) * 1000 + rows
    data = intact("JPEG")
    scan = max(i for i in boundaries(data, "JPEG") if data[i + 1] == 0xDA)
    yield "JPEG of ten thousand scans", data[:scan] + data[scan : scan + 14] * 10_000 + data[scan:]
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    yield "PNG of 400 megapixels", file.getvalue()


def costly() -> Iterator[tuple[str, bytes]]:
    """Yield small files within 64 megapixels that would take seconds or gigabytes to decode."""
    yield "BMP, run-length, one row of 64 million", _bmp_rle(64_000_000, 1, b"\1\1\0\0\0\1")
    yield "BMP, run-length, a pixel a row", _bmp_rle(8000, 8000, b"\1\1\0\0" * 8000 + b"\0\1")
    yield "BMP, run-length, runs of no pixel", _bmp_rle(1000, 1000, b"\0\2\0\0" * 5_000_000)
    lossless = b"VP8L" + struct.pack("<IBI", 5, 0x2F, 7999 | 7999 << 14) + bytes(5)
    yield "WebP, lossless, 8000 x 8000", b"RIFF" + struct.pack("<I", len(lossless) + 4) + b"WEBP" + lossless


def metadata() -> Iterator[tuple[str, bytes]]:
    """Yield intact images with invalid EXIF."""
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
    """Yield files that are valid in two formats, or nearly."""
    for format in FORMATS:
        yield f"{format} and a zip", intact(format) + b"PK\x03\x04" + bytes(100)
        yield f"{format} and a page", intact(format) + b"<script>alert(1)</script>"
    yield "a page that begins like a GIF", b"GIF89a/*<script>alert(1)</script>*/"
    yield "a PDF around a JPEG", b"%PDF-1.7\n" + intact("JPEG")


def all_files() -> Iterator[tuple[str, bytes]]:
    """Yield the whole corpus: a name and the bytes of each file."""
    for format in FORMATS:
        yield from truncated(format)
        yield from flipped(format)
        yield from wrong_sizes(format)
    yield from bombs()
    yield from metadata()
    yield from polyglots()


def _bmp_rle(width: int, height: int, body: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + head + bytes(1024) + body


def _with_app1(jpeg: bytes, data: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpeg[2:]
