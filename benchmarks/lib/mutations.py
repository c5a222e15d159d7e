"""Image files with mutations that know the format: headers, sizes, lengths of chunks, their order and number."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise

from PIL import Image

from benchmarks.lib import hostile_images as images

Span = tuple[int, int]  # from and to, in bytes
Number = tuple[int, str]  # an offset, and a layout of ``struct``
_VALUES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 10**5, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_LARGEST = 8 * 2**20  # bytes of a mutated file
_REPEATS = (2, 3, 10, 100, 3000)


@lru_cache
def originals() -> dict[str, tuple[bytes, ...]]:
    """Return small valid files by format, in as many modes and compressions as the formats have."""
    rng = random.Random(0)
    noise = Image.frombytes("RGB", (70, 50), rng.randbytes(70 * 50 * 3))

    def each(format: str, *variants: tuple[str, dict[str, object]]) -> list[bytes]:
        return [images.saved(noise.convert(mode), format, **options) for mode, options in variants]

    frames = {"save_all": True, "append_images": [noise.convert("P").convert("RGB")] * 2}
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    grey = noise.convert("L")
    deep = Image.frombytes("I;16", (70, 50), rng.randbytes(70 * 50 * 2))
    tiffs = [{"compression": name} for name in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg", "zstd")]
    return {
        "JPEG": (
            *each("JPEG", ("RGB", {"exif": exif}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})),
            *each("JPEG", ("RGB", {"restart_marker_rows": 1}), ("RGB", {"icc_profile": b"p" * 99, "comment": b"c"})),
            images.saved(noise, "MPO", **frames),
        ),
        "PNG": (
            *each("PNG", ("RGB", {"exif": exif}), ("RGBA", {}), ("P", {"transparency": 1}), ("LA", {}), ("1", {})),
            images.saved(deep, "PNG"),
            images.saved(noise, "PNG", **frames),
            images.png(8, 8, zlib.compress(bytes(400)), interlaced=True, before=images.png_chunk(b"tEXt", b"a\0b")),
        ),
        "WEBP": (
            *each("WEBP", ("RGB", {"exif": exif}), ("RGB", {"lossless": True}), ("RGBA", {}), ("RGB", frames)),
            images.animated_webp(64, 3),
        ),
        "GIF": (
            *each("GIF", ("P", {}), ("P", {"interlace": 0, "comment": b"c"}), ("RGB", frames)),
            images.gif(64, 64, images.gif_frame()),
        ),
        "BMP": (
            *each("BMP", ("RGB", {}), ("L", {}), ("1", {}), ("RGBA", {})),
            images.bmp(30, 20, b"\1\1\0\0" * 20 + b"\0\1"),
            images.bmp(30, 20, b"\x1e\1\0\0" * 20 + b"\0\1", bits=4, compression=2),
        ),
        "TIFF": (
            *each("TIFF", *(("RGB", options) for options in tiffs), ("1", {"compression": "group4"}), ("RGBA", {})),
            images.saved(grey.convert("F"), "TIFF"),
            images.saved(grey.convert("I"), "TIFF"),
            images.tiff(32, 32, images.zeros(3072), next_directory="self", extra=[(274, 3, 1, 6)]),
            images.tiff(32, 32, images.zeros(768 * 4), tile=(16, 16), strips=4),
        ),
    }


def mutated_files(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield a format and a file, without end: valid ones with one to four mutations."""
    formats = list(originals())
    while True:
        format = rng.choice(formats)
        data = rng.choice(originals()[format])
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            data = rng.choice(_MUTATIONS)(data, format, rng)[:_LARGEST]
        if format == "PNG" and rng.random() < 0.8:
            data = _with_right_checksums(data)
        yield format, data


# -------------------------------------------------------------------------------------------------------- the mutations
def _flip_bits(data: bytes, format: str, rng: random.Random) -> bytes:
    changed = bytearray(data)
    span = min(len(data), 64) if rng.random() < 0.5 else len(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if span else 0):
        changed[rng.randrange(span)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set_number(data: bytes, format: str, rng: random.Random) -> bytes:
    numbers = structure(data, format)[1]
    if not numbers:
        return data
    offset, layout = rng.choice(numbers)
    size = struct.calcsize(layout)
    if offset + size > len(data):
        return data
    (old,) = struct.unpack_from(layout, data, offset)
    value = rng.choice((*_VALUES, old + 1, old - 1, old * 2, rng.randrange(256**size)))
    return data[:offset] + struct.pack(layout, value % 256**size) + data[offset + size :]


def _change_parts(data: bytes, format: str, rng: random.Random) -> bytes:
    """Drop, repeat, exchange, shorten or borrow a part."""
    spans = structure(data, format)[0]
    if not spans:
        return data
    start, end = rng.choice(spans)
    kind = rng.randrange(5)
    if kind == 0:
        return data[:start] + data[end:]
    if kind == 1:
        return (
            data[:start] + data[start:end] * min(rng.choice(_REPEATS), 1 + _LARGEST // (end - start + 1)) + data[end:]
        )
    if kind == 2:
        other_start, other_end = rng.choice(spans)
        (a, b), (c, d) = sorted([(start, end), (other_start, other_end)])
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:] if b <= c else data
    if kind == 3:
        cut = rng.randint(start, end)
        return data[:cut] + data[end:]
    other = rng.choice(originals()[format])
    other_spans = structure(other, format)[0]
    other_start, other_end = rng.choice(other_spans)
    return data[:start] + other[other_start:other_end] + data[start:]


def _cut(data: bytes, format: str, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _insert(data: bytes, format: str, rng: random.Random) -> bytes:
    offset = rng.randrange(len(data) + 1)
    filling = rng.choice((b"\0", b"\xff", rng.randbytes(1), rng.randbytes(7)))
    return data[:offset] + filling * rng.choice((1, 2, 100, 10_000)) + data[offset:]


_MUTATIONS: tuple[Callable[[bytes, str, random.Random], bytes], ...] = (
    _flip_bits, _set_number, _set_number, _set_number, _change_parts, _change_parts, _cut, _insert,
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the structure
def structure(data: bytes, format: str) -> tuple[list[Span], list[Number]]:
    """Return the parts of a file, and the numbers in it that say sizes, lengths, kinds and places."""
    return _STRUCTURES[format](data)


def _png(data: bytes) -> tuple[list[Span], list[Number]]:
    spans, offset = [], 8
    numbers: list[Number] = [(16, ">I"), (20, ">I"), *((place, ">B") for place in range(24, 29))]
    while offset + 12 <= len(data) and len(spans) < 4000:
        end = offset + 12 + int.from_bytes(data[offset : offset + 4], "big")
        spans.append((offset, min(end, len(data))))
        numbers += [(offset, ">I"), *((offset + place, ">I") for place in (8, 12, 16, 20))]
        offset = end
    return spans, numbers


def _jpeg(data: bytes) -> tuple[list[Span], list[Number]]:
    spans: list[Span] = []
    numbers: list[Number] = []
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF and len(spans) < 4000:
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        spans.append((offset, min(end, len(data))))
        numbers += [(offset + 1, ">B"), (offset + 2, ">H")]
        if 0xC0 <= data[offset + 1] <= 0xCF or data[offset + 1] == 0xDA:
            numbers += [(offset + 5, ">H"), (offset + 7, ">H"), *((offset + place, ">B") for place in range(4, 19))]
        if data[offset + 1] in (0xE1, 0xE2, 0xDB, 0xC4, 0xDD):
            numbers += [(offset + place, ">H") for place in range(4, min(60, end - offset), 2)]
        if data[offset + 1] == 0xDA:
            break
        offset = end
    return spans, numbers


def _webp(data: bytes) -> tuple[list[Span], list[Number]]:
    spans, offset = [], 12
    numbers: list[Number] = [(4, "<I")]
    while offset + 8 <= len(data) and len(spans) < 4000:
        length = int.from_bytes(data[offset + 4 : offset + 8], "little")
        end = offset + 8 + length + length % 2
        spans.append((offset, min(end, len(data))))
        numbers += [(offset + 4, "<I"), *((offset + place, "<H") for place in range(8, 24, 2)), (offset + 8, "<B")]
        offset = end
    return spans, numbers


def _gif(data: bytes) -> tuple[list[Span], list[Number]]:
    numbers: list[Number] = [(6, "<H"), (8, "<H"), (10, "<B")]
    start = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    marks = [offset for offset in range(start, len(data)) if data[offset] in b"!,;"][:200]
    numbers += [(mark + place, "<H") for mark in marks for place in (1, 3, 5, 7)]
    return list(zip(marks, [*marks[1:], len(data)], strict=False)), numbers


def _bmp(data: bytes) -> tuple[list[Span], list[Number]]:
    start = int.from_bytes(data[10:14], "little")
    edges = sorted({14, 54, min(start, len(data)), (min(start, len(data)) + len(data)) // 2, len(data)})
    numbers: list[Number] = [(place, "<I") for place in (2, 10, 14, 18, 22, 30, 34, 46, 50)]
    numbers += [(26, "<H"), (28, "<H"), *((place, "<B") for place in range(54, min(len(data), 80)))]
    return list(pairwise(edges)), numbers


def _tiff(data: bytes) -> tuple[list[Span], list[Number]]:
    order = "<" if data[:2] == b"II" else ">"
    spans: list[Span] = []
    numbers: list[Number] = [(4, f"{order}I")]
    if len(data) >= 8:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        if first + 2 <= len(data):
            (count,) = struct.unpack_from(f"{order}H", data, first)
            numbers.append((first, f"{order}H"))
            for entry in range(first + 2, min(first + 2 + 12 * count, len(data) - 12), 12):
                spans.append((entry, entry + 12))
                layouts = ("H", "H", "I", "I", "H")
                numbers += [
                    (entry + place, order + layout) for place, layout in zip((0, 2, 4, 8, 8), layouts, strict=True)
                ]
            numbers.append((first + 2 + 12 * count, f"{order}I"))
            spans.append((8, max(9, first)))
    return spans, numbers


def _with_right_checksums(data: bytes) -> bytes:
    """Return a PNG whose chunks have the checksums of what is in them."""
    pieces, offset = [data[:8]], 8
    while offset + 12 <= len(data):
        length = int.from_bytes(data[offset : offset + 4], "big")
        if offset + 12 + length > len(data):
            break
        body = data[offset + 4 : offset + 8 + length]
        pieces.append(data[offset : offset + 4] + body + struct.pack(">I", zlib.crc32(body)))
        offset += 12 + length
    return b"".join([*pieces, data[offset:]])


_STRUCTURES: dict[str, Callable[[bytes], tuple[list[Span], list[Number]]]] = {
    "JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif, "BMP": _bmp, "TIFF": _tiff,
}  # fmt: skip
