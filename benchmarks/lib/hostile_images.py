"""Image files that are small or ordinary to send and expensive to decode, by format. Made here, from code alone.

``CASES`` lists a name and a function for each, so that a file is made only where it is used. Most are valid, or valid
up to the part that is expensive. ``LEGITIMATE`` lists large files that the service must still accept at its defaults.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from PIL import Image

MakeFile = Callable[[], bytes]
SIDE = 8000  # its square is the largest number of pixels that the service accepts at its defaults


def saved(image: Image.Image, format: str, **options: Any) -> bytes:
    """Return an image as a file of ``format``; the options are those of ``Image.save``."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def plain(format: str, side: int = SIDE, mode: str = "RGB", **options: Any) -> bytes:
    """Return a square, black image."""
    return saved(Image.new(mode, (side, side)), format, **options)


def noise(format: str, width: int = 64, height: int = 64, mode: str = "RGB", **options: Any) -> bytes:
    """Return an image of noise."""
    return saved(Image.effect_noise((width, height), 60).convert(mode), format, **options)


def zeros(count: int) -> bytes:
    """Return ``count`` zeros compressed by zlib (RFC 1950): one compressed block of a megabyte, again and again."""
    block, last = (zlib.compressobj(9, zlib.DEFLATED, -15) for _ in range(2))
    megabyte = block.compress(bytes(1 << 20)) + block.flush(zlib.Z_FULL_FLUSH)
    rest = last.compress(bytes(count % (1 << 20))) + last.flush()
    checksum = count % 65_521 << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + megabyte * (count >> 20) + rest + struct.pack(">I", checksum)


# --------------------------------------------------------------------------------------------------------------- BMP
def bmp(
    width: int,
    height: int,
    body: bytes = b"",
    *,
    bits: int = 8,
    compression: int = 1,
    colours: int = 256,
    offset: int | None = None,
) -> bytes:
    """Return a BMP. compression: 0 none, 1 runs of 8 bits, 2 runs of 4 bits, 3 bit masks. offset: of the pixels."""
    palette = b"\0\0\0\0" * (256 if bits <= 8 else 0)
    start = 54 + len(palette) if offset is None else offset
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(body), 0, 0, start) + header + palette + body


BMP: Mapping[str, MakeFile] = {
    "runs of 8 bits: a row of 64 million": lambda: bmp(SIDE * SIDE, 1, b"\1\1\0\0\0\1"),
    "runs of 8 bits: a pixel in each of 8,000 rows": lambda: bmp(SIDE, SIDE, b"\1\1\0\0" * SIDE + b"\0\1"),
    "runs of 8 bits: 8,000 empty rows": lambda: bmp(SIDE, SIDE, b"\0\0" * SIDE + b"\0\1"),
    "runs of 8 bits: no data": lambda: bmp(SIDE, SIDE),
    "runs of 8 bits: full runs": lambda: bmp(SIDE, SIDE, (b"\xff\1" * 31 + b"\x5f\1\0\0") * SIDE + b"\0\1"),
    "runs of 8 bits: runs of one": lambda: bmp(1000, 8000, b"\1\1" * 8_000_000),
    "runs of 8 bits: moves to the right": lambda: bmp(SIDE, SIDE, b"\0\2\xff\0" * 250_000 + b"\0\1"),
    "runs of 8 bits: moves down": lambda: bmp(SIDE, SIDE, b"\0\2\0\xff" * 250_000 + b"\0\1"),
    "runs of 8 bits: literal runs": lambda: bmp(SIDE, 2000, (b"\0\xfe" + b"\7" * 254) * 40_000),
    "runs of 8 bits: a column of 64 million": lambda: bmp(1, SIDE * SIDE, b"\1\1\0\0" * 1000 + b"\0\1"),
    "runs of 8 bits: ended at once": lambda: bmp(SIDE, SIDE, b"\0\1"),
    "runs of 4 bits: a row of 64 million": lambda: bmp(SIDE * SIDE, 1, b"\1\1\0\0\0\1", bits=4, compression=2),
    "runs of 4 bits: a pixel a row": lambda: bmp(SIDE, SIDE, b"\1\1\0\0" * SIDE, bits=4, compression=2),
    "runs of 4 bits: literal runs": lambda: bmp(2000, 2000, (b"\0\xfc" + b"7" * 126) * 15_000, bits=4, compression=2),
    "one bit, 8000 x 8000": lambda: bmp(SIDE, SIDE, bytes(SIDE * SIDE // 8), bits=1, compression=0),
    "one bit, top down": lambda: bmp(SIDE, -SIDE, bytes(SIDE * SIDE // 8), bits=1, compression=0),
    "a palette of 4 billion colours": lambda: bmp(64, 64, bytes(4096), compression=0, colours=2**32 - 1),
    "pixels that begin far outside": lambda: bmp(64, 64, bytes(4096), compression=0, offset=2**31 - 1),
    "bit masks of nothing": lambda: bmp(2000, 2000, bytes(8_000_000), bits=16, compression=3),
    "a height of -2**31": lambda: bmp(64, -(2**31), bytes(4096), compression=0),
}


# -------------------------------------------------------------------------------------------------------------- WebP
def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP file of the chunks."""
    body = b"WEBP" + b"".join(webp_chunk(*chunk) for chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk, padded to an even length."""
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _three(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def _vp8x(width: int, height: int, flags: int) -> tuple[bytes, bytes]:
    return b"VP8X", bytes([flags, 0, 0, 0]) + _three(width - 1) + _three(height - 1)


def _bitstream(lossless: bool, side: int = 1) -> tuple[bytes, bytes]:
    """Return the chunk with the pixels of a plain image."""
    file = saved(Image.new("RGB", (side, side)), "WEBP", lossless=lossless)
    return file[12:16], file[20 : 20 + struct.unpack("<I", file[16:20])[0]]


def animated_webp(side: int, frames: int, *, frame_side: int = 1, dispose: int = 0) -> bytes:
    """Return an animation of small frames on a canvas of ``side`` x ``side``."""
    head = _three(0) + _three(0) + _three(frame_side - 1) + _three(frame_side - 1) + _three(100) + bytes([dispose])
    frame = (b"ANMF", head + webp_chunk(*_bitstream(True, frame_side)))
    return riff(_vp8x(side, side, 0x02), (b"ANIM", b"\0\0\0\0\0\0"), *[frame] * frames)


WEBP: Mapping[str, MakeFile] = {
    "lossless, 8000 x 8000 with alpha": partial(plain, "WEBP", mode="RGBA", lossless=True),
    "lossless, 8000 x 8000": partial(plain, "WEBP", lossless=True),
    "lossless, 16383 x 3900": lambda: saved(Image.new("RGBA", (16383, 3900)), "WEBP", lossless=True),
    "lossy, 8000 x 8000": partial(plain, "WEBP", quality=1, method=0),
    "lossy, 6000 x 6000 with alpha": partial(plain, "WEBP", side=6000, mode="RGBA", quality=1, method=0),
    "lossless noise, 1500 x 1500": partial(noise, "WEBP", 1500, 1500, lossless=True, quality=0, method=0),
    "an animation on 8000 x 8000 with one frame of 1 x 1": partial(animated_webp, SIDE, 1),
    "an animation on 8000 x 8000 with 20,000 frames": partial(animated_webp, SIDE, 20_000),
    "an animation with one frame of 8000 x 8000": partial(animated_webp, SIDE, 1, frame_side=SIDE),
    "an animation on 4000 x 4000 that clears itself": partial(animated_webp, 4000, 1000, dispose=1),
    "a canvas of 8000 x 8000 around 1 x 1": lambda: riff(_vp8x(SIDE, SIDE, 0), _bitstream(False)),
    "a canvas of 1 x 1 around 8000 x 8000": lambda: riff(_vp8x(1, 1, 0), _bitstream(True, SIDE)),
    "20 MB of EXIF": lambda: riff(_vp8x(64, 64, 0x08), _bitstream(True, 64), (b"EXIF", bytes(20_000_000))),
    "a colour profile of 20 MB": lambda: riff(_vp8x(64, 64, 0x20), (b"ICCP", bytes(20_000_000)), _bitstream(True, 64)),
    "a million unknown chunks": lambda: riff(_vp8x(64, 64, 0), *[(b"junk", b"")] * 1_000_000, _bitstream(True, 64)),
    "a length of 4 billion": lambda: b"RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\xff" + _bitstream(True, 64)[1],
}


# -------------------------------------------------------------------------------------------------------------- TIFF
def tiff(
    width: int,
    height: int,
    data: bytes = b"",
    *,
    compression: int = 8,
    bits: int = 8,
    samples: int = 3,
    photometric: int | None = None,
    tile: tuple[int, int] | None = None,
    rows_per_strip: int | None = None,
    strips: int = 1,
    extra: Iterable[tuple[int, int, int, int]] = (),
    next_directory: int | str = 0,
    tail: Callable[[int], bytes] = lambda offset: b"",
) -> bytes:
    """Return a little-endian TIFF with one directory after its pixels.

    extra: further entries (tag, type, count, value). strips: that all lie on the same data. next_directory: its offset;
    ``"self"`` for a loop. tail: bytes after the directory, from the offset at which they begin.
    """
    if photometric is None:
        photometric = {1: 1, 3: 2, 4: 5}[samples]
    data += b"\0" * (len(data) % 2)
    arrays = b""
    base = 8 + len(data)

    def array(values: bytes) -> int:
        nonlocal arrays
        offset = base + len(arrays)
        arrays += values + b"\0" * (len(values) % 2)
        return offset

    widths = (3, samples, array(struct.pack("<H", bits) * samples)) if samples > 2 else (3, 1, bits)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, *widths), (259, 3, 1, compression)]
    tags += [(262, 3, 1, photometric), (277, 3, 1, samples)]
    tags += [] if any(tag[0] == 284 for tag in extra) else [(284, 3, 1, 1)]
    places = (4, strips, 8 if strips == 1 else array(struct.pack("<I", 8) * strips))
    sizes = (4, strips, len(data) if strips == 1 else array(struct.pack("<I", len(data)) * strips))
    if tile:
        tags += [(322, 4, 1, tile[0]), (323, 4, 1, tile[1]), (324, *places), (325, *sizes)]
    else:
        tags += [(273, *places), (278, 4, 1, rows_per_strip or height), (279, *sizes)]
    tags = sorted([*tags, *extra])[:65_535]
    start = base + len(arrays)
    end = start + 2 + 12 * len(tags) + 4
    following = {"self": start, "tail": end}.get(str(next_directory), next_directory)
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", start) + data + arrays + directory + tail(end)


def _directories(count: int) -> Callable[[int], bytes]:
    """Return a chain of ``count`` empty directories."""
    return lambda offset: b"".join(
        struct.pack("<HI", 0, offset + 6 * (number + 1) if number + 1 < count else 0) for number in range(count)
    )


TIFF: Mapping[str, MakeFile] = {
    "16 x 16 in one tile of 16384 x 32768": lambda: tiff(16, 16, zeros(16384 * 32768 * 3), tile=(16384, 32768)),
    "16 x 16 in one tile of 65536 x 65536, no data": lambda: tiff(16, 16, b"x", tile=(65536, 65536)),
    "a tile of 16 x 2**31": lambda: tiff(16, 16, b"x", tile=(16, 2**31 - 16)),
    "16 x 16 in a strip of 2**31 rows": lambda: tiff(16, 16, zeros(200_000_000), rows_per_strip=2**31 - 1),
    "one strip of 8000 x 8000, deflated": lambda: tiff(SIDE, SIDE, zeros(SIDE * SIDE * 3)),
    "8,000 strips on the same data": lambda: tiff(SIDE, SIDE, zeros(SIDE * 3), rows_per_strip=1, strips=SIDE),
    "a million strips of a pixel": lambda: tiff(1, 1_000_000, zeros(3), rows_per_strip=1, strips=1_000_000),
    "tiles of 16 x 16 on the same data": lambda: tiff(4000, 4000, zeros(768), tile=(16, 16), strips=62_500),
    "one strip of 8000 x 8000, bytes missing": lambda: tiff(SIDE, SIDE, zeros(1000)),
    "old deflate": lambda: tiff(SIDE, SIDE, zeros(SIDE * SIDE * 3), compression=32946),
    "pack bits": partial(plain, "TIFF", 4000, compression="packbits"),
    "LZW": partial(plain, "TIFF", compression="tiff_lzw"),
    "fax, group 3": partial(plain, "TIFF", mode="1", compression="group3"),
    "fax, group 4": partial(plain, "TIFF", mode="1", compression="group4"),
    "fax of garbage": lambda: tiff(SIDE, SIDE, b"\x35\x12" * 100_000, compression=4, bits=1, samples=1, photometric=0),
    "JPEG inside": partial(plain, "TIFF", compression="jpeg"),
    "old JPEG inside": lambda: tiff(SIDE, SIDE, noise("JPEG"), compression=6),
    "a JPEG of 64 x 64 for 8000 x 8000": lambda: tiff(SIDE, SIDE, noise("JPEG"), compression=7, photometric=6),
    "LZMA": partial(plain, "TIFF", 3000, compression="lzma"),
    "Zstandard": partial(plain, "TIFF", compression="zstd"),
    "WebP inside": lambda: tiff(64, 64, plain("WEBP", lossless=True), compression=50001),
    "unknown compression": lambda: tiff(SIDE, SIDE, b"x" * 100, compression=60000),
    "not compressed, bytes missing": lambda: tiff(SIDE, SIDE, b"x" * 100, compression=1),
    "16 bits of grey": lambda: tiff(SIDE, SIDE, zeros(SIDE * SIDE * 2), bits=16, samples=1),
    "32 bits of float": lambda: tiff(SIDE, SIDE, zeros(SIDE * SIDE * 4), bits=32, samples=1, extra=[(339, 3, 1, 3)]),
    "64 bits of float": lambda: tiff(4000, 4000, zeros(128_000_000), bits=64, samples=1, extra=[(339, 3, 1, 3)]),
    "32 bits of whole numbers": lambda: tiff(SIDE, SIDE, zeros(SIDE * SIDE * 4), bits=32, samples=1),
    "float with infinities": lambda: tiff(
        64,
        64,
        zlib.compress(struct.pack("<4f", float("inf"), float("nan"), 3e38, -3e38) * 1024),
        bits=32,
        samples=1,
        extra=[(339, 3, 1, 3)],
    ),
    "CMYK": lambda: tiff(SIDE, SIDE, zeros(SIDE * SIDE * 4), samples=4),
    "16 bits of RGBA": lambda: tiff(
        4000, 4000, zeros(128_000_000), bits=16, samples=4, photometric=2, extra=[(338, 3, 1, 2)]
    ),
    "planes one by one": lambda: tiff(SIDE, SIDE, zeros(SIDE * SIDE), strips=3, extra=[(284, 3, 1, 2)]),
    "a horizontal predictor": lambda: tiff(SIDE, SIDE, zeros(SIDE * SIDE * 3), extra=[(317, 3, 1, 2)]),
    "shown turned": lambda: tiff(SIDE, SIDE, zeros(SIDE * SIDE * 3), extra=[(274, 3, 1, 6)]),
    "200 samples a pixel": lambda: tiff(2000, 2000, zeros(2000 * 2000 * 200), samples=200, photometric=2),
    "a directory of 65,535 entries": lambda: tiff(64, 64, zeros(12288), extra=[(40_000, 4, 1, 1)] * 65_520),
    "65,535 entries of 4 billion values": lambda: tiff(
        64, 64, zeros(12288), extra=[(40_000, 12, 2**32 - 1, 8)] * 65_520
    ),
    "65,535 entries that share 5 MB": lambda: tiff(
        64, 64, bytes(5_000_000), extra=[(40_000, 7, 4_000_000, 8)] * 65_520
    ),
    "a profile that is the whole file": lambda: tiff(64, 64, zeros(12288), extra=[(34675, 7, 2**31, 8)]),
    "a directory that follows itself": lambda: tiff(64, 64, zeros(12288), next_directory="self"),
    "a million directories": lambda: tiff(64, 64, zeros(12288), next_directory="tail", tail=_directories(1_000_000)),
    "EXIF that points to itself": lambda: tiff(64, 64, zeros(12288), extra=[(34665, 4, 1, 8 + 6 + len(zeros(12288)))]),
    "a width of 2**32 - 1": lambda: tiff(2**32 - 1, 1, b"x" * 100),
    "BigTIFF": lambda: b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + bytes(100),
}


# --------------------------------------------------------------------------------------------------------------- PNG
def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    pixels: bytes,
    *,
    bits: int = 8,
    colour: int = 2,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """Return a PNG. pixels: compressed rows. colour: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    parts = [png_chunk(b"IHDR", head), before, png_chunk(b"IDAT", pixels), after, png_chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _png_with(before: bytes = b"", after: bytes = b"") -> bytes:
    return png(8, 8, zeros(8 * 25), before=before, after=after)


def _apng(frames: int) -> bytes:
    first = struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 10, 0, 0)
    control = png_chunk(b"acTL", struct.pack(">II", frames + 1, 0)) + png_chunk(b"fcTL", first)
    pixels = zeros(8 * 25)
    later = b"".join(
        png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * number + 1, 8, 8, 0, 0, 1, 10, 0, 0))
        + png_chunk(b"fdAT", struct.pack(">I", 2 * number + 2) + pixels)
        for number in range(frames)
    )
    return _png_with(control, later)


_PALETTE = png_chunk(b"PLTE", bytes(range(48)))

PNG: Mapping[str, MakeFile] = {
    "interlaced RGB, 8000 x 8000": lambda: png(SIDE, SIDE, zeros(SIDE * SIDE * 3 + 15_000), interlaced=True),
    "interlaced RGBA, 5000 x 5000": lambda: png(5000, 5000, zeros(100_020_000), colour=6, interlaced=True),
    "RGBA, 8000 x 8000": lambda: png(SIDE, SIDE, zeros(SIDE * (SIDE * 4 + 1)), colour=6),
    "16 bits of RGBA, 5500 x 5500": lambda: png(5500, 5500, zeros(5500 * (5500 * 8 + 1)), bits=16, colour=6),
    "16 bits of grey, 8000 x 8000": lambda: png(SIDE, SIDE, zeros(SIDE * (SIDE * 2 + 1)), bits=16, colour=0),
    "a palette with alpha, 8000 x 8000": lambda: png(
        SIDE, SIDE, zeros(SIDE * 1001), bits=1, colour=3, before=_PALETTE + png_chunk(b"tRNS", b"\0\x80")
    ),
    "one bit of grey with a transparent value": lambda: png(
        SIDE, SIDE, zeros(SIDE * 1001), bits=1, colour=0, before=png_chunk(b"tRNS", b"\0\0")
    ),
    "a row of 64 million": lambda: png(SIDE * SIDE, 1, zeros(SIDE * SIDE * 3 + 1)),
    "a column of 64 million": lambda: png(1, SIDE * SIDE, zeros(SIDE * SIDE * 4)),
    "pixels missing": lambda: png(SIDE, SIDE, zeros(1000)),
    "80 MB of pixels too many": lambda: png(8, 8, zeros(80_000_000)),
    "a compressed text of 80 MB": lambda: _png_with(png_chunk(b"zTXt", b"a\0\0" + zeros(80_000_000))),
    "300 compressed texts of 1 MB": lambda: _png_with(png_chunk(b"zTXt", b"a\0\0" + zeros(1_000_000)) * 300),
    "a compressed international text of 80 MB": lambda: _png_with(
        png_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(80_000_000))
    ),
    "a colour profile of 80 MB": lambda: _png_with(png_chunk(b"iCCP", b"a\0\0" + zeros(80_000_000))),
    "3,000 colour profiles of 1 MB": lambda: _png_with(png_chunk(b"iCCP", b"a\0\0" + zeros(1_000_000)) * 3_000),
    "200,000 texts": lambda: _png_with(png_chunk(b"tEXt", b"key\0value") * 200_000),
    "a million unknown chunks": lambda: _png_with(png_chunk(b"juNk") * 1_000_000),
    "a million empty pixel chunks": lambda: _png_with(png_chunk(b"IDAT") * 1_000_000),
    "20 MB of EXIF": lambda: _png_with(png_chunk(b"eXIf", b"II*\0\x08\0\0\0" + bytes(20_000_000))),
    "100,000 times EXIF": lambda: _png_with(png_chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0") * 100_000),
    "an animation of 10,000 frames": partial(_apng, 10_000),
    "an animation that names 2**31 frames": lambda: _png_with(png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "a chunk of 2 GB": lambda: b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(1000),
}


# --------------------------------------------------------------------------------------------------------------- GIF
def gif(width: int, height: int, *blocks: bytes) -> bytes:
    """Return a GIF of blocks with a palette of two colours."""
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + b"".join(blocks) + b";"
    )


def gif_frame(x: int = 0, y: int = 0, width: int = 1, height: int = 1, data: bytes = b"\x02\x02\x44\x01\x00") -> bytes:
    """Return a frame: a pixel, unless ``data`` (LZW code size and sub-blocks) says more."""
    return b"," + struct.pack("<HHHHB", x, y, width, height, 0) + data


def _comment(blocks: int) -> bytes:
    return b"!\xfe" + (b"\xff" + b"x" * 255) * blocks + b"\0"


GIF: Mapping[str, MakeFile] = {
    "one colour, 8000 x 8000": partial(plain, "GIF", mode="P"),
    "a frame of 1 x 1 on 8000 x 8000": lambda: gif(SIDE, SIDE, gif_frame()),
    "a frame of 8000 x 8000 without data": lambda: gif(SIDE, SIDE, gif_frame(0, 0, SIDE, SIDE)),
    "a frame of 65535 x 65535 on 1 x 1": lambda: gif(1, 1, gif_frame(0, 0, 65535, 65535)),
    "a frame far outside": lambda: gif(64, 64, gif_frame(65535, 65535, 64, 64)),
    "a comment of 10 MB": lambda: gif(64, 64, _comment(40_000), gif_frame(0, 0, 64, 64)),
    "100,000 comments": lambda: gif(64, 64, _comment(1) * 100_000, gif_frame(0, 0, 64, 64)),
    "a million empty comments": lambda: gif(64, 64, b"!\xfe\0" * 1_000_000, gif_frame()),
    "200,000 application blocks": lambda: gif(64, 64, b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0" * 200_000, gif_frame()),
    "500,000 control blocks": lambda: gif(64, 64, b"!\xf9\4\1\0\0\1\0" * 500_000, gif_frame()),
    "5 million unknown extensions": lambda: gif(64, 64, b"!\x99\0" * 5_000_000, gif_frame()),
    "5 million stray bytes": lambda: gif(64, 64, b"\1" * 5_000_000, gif_frame()),
    "extensions and no frame": lambda: gif(64, 64, b"!\xfe\1x\0" * 1_000_000),
    "10,000 frames on 8000 x 8000": lambda: gif(SIDE, SIDE, gif_frame() * 10_000),
    "pixels in a million empty blocks": lambda: gif(64, 64, gif_frame(0, 0, 64, 64, b"\x02" + b"\x01\x44" * 1_000_000)),
}


# -------------------------------------------------------------------------------------------------------------- JPEG
def segment(marker: int, data: bytes = b"") -> bytes:
    """Return a JPEG segment."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_segments(segments: bytes, jpeg: bytes | None = None) -> bytes:
    """Return a JPEG, by default a small one, with more segments at its start."""
    jpeg = noise("JPEG") if jpeg is None else jpeg
    return jpeg[:2] + segments + jpeg[2:]


def _exif(entries: bytes, count: int, following: int = 0) -> bytes:
    directory = b"MM\0*\0\0\0\x08" + struct.pack(">H", count) + entries + struct.pack(">I", following)
    return segment(0xE1, b"Exif\0\0" + directory)


def resized_jpeg(width: int, height: int, jpeg: bytes | None = None, frame: int | None = None) -> bytes:
    """Return a small JPEG whose header has another size and, by ``frame``, another kind of frame (0xC0 to 0xCF)."""
    data = bytearray(noise("JPEG") if jpeg is None else jpeg)
    start = next(data.index(marker) for marker in (b"\xff\xc0\0\x11", b"\xff\xc2\0\x11") if marker in data)
    struct.pack_into(">HH", data, start + 5, height, width)
    if frame is not None:
        data[start + 1] = frame
    return bytes(data)


def _many_scans(count: int, side: int) -> bytes:
    """Return a progressive JPEG whose last scan is repeated, each time almost without data."""
    data = plain("JPEG", side, progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start : start + 14] * count + data[start:]


def _multi_picture(count: int) -> bytes:
    """Return a JPEG with an index of ``count`` further images that are not there (CIPA DC-007)."""
    index = b"MM\0*\0\0\0\x08" + struct.pack(
        ">HHHIIHHIIHHIII", 3, 0xB000, 7, 4, 0x30313030, 0xB001, 4, 1, count, 0xB002, 7, 16 * count, 50, 0
    )
    return with_segments(segment(0xE2, b"MPF\0" + index + bytes(16 * min(count, 3900))))


def _coloured_jpeg(mode: str, side: int, **options: Any) -> bytes:
    return saved(Image.new(mode, (side, side)), "JPEG", quality=70, **options)


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


JPEG: Mapping[str, MakeFile] = {
    "80,000 EXIF segments": lambda: with_segments(segment(0xE1, b"Exif\0\0" + b"x" * 10) * 80_000),
    "3 MB of large EXIF segments": lambda: with_segments(segment(0xE1, b"Exif\0\0" + b"x" * 60_000) * 50),
    "30 MB of large EXIF segments": lambda: with_segments(segment(0xE1, b"Exif\0\0" + b"x" * 60_000) * 500),
    "1.4 million empty segments": lambda: with_segments(segment(0xE0) * 1_400_000),
    "EXIF of 5,000 entries": lambda: with_segments(_exif(struct.pack(">HHII", 0x9286, 7, 1, 0) * 5000, 5000)),
    "EXIF entries of 60 KB each": lambda: with_segments(_exif(struct.pack(">HHII", 0x9286, 7, 60_000, 8) * 5000, 5000)),
    "EXIF that follows itself": lambda: with_segments(_exif(struct.pack(">HHII", 0x8769, 4, 1, 8), 1, 8)),
    "EXIF with a count of 4 billion": lambda: with_segments(_exif(struct.pack(">HHII", 0x0112, 12, 2**32 - 1, 8), 1)),
    "80,000 colour profile segments": lambda: with_segments(segment(0xE2, b"ICC_PROFILE\0\1\1x") * 80_000),
    "a colour profile of 15 MB": lambda: with_segments(
        b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(60_000)) for n in range(1, 256))
    ),
    "200,000 comments": lambda: with_segments(segment(0xFE, b"a comment") * 200_000),
    "30 MB of comments": lambda: with_segments(segment(0xFE, b"x" * 65_000) * 460),
    "60,000 Photoshop segments": lambda: with_segments(
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10" + bytes(16)) * 60_000
    ),
    "a Photoshop segment of 4,000 resources": lambda: with_segments(
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\0\0\0\2ab" * 4000)
    ),
    "200,000 XMP segments": lambda: with_segments(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>") * 200_000),
    "100,000 Adobe segments": lambda: with_segments(segment(0xEE, b"Adobe\0d\0\0\0\0\1") * 100_000),
    "300,000 quantization tables": lambda: with_segments(segment(0xDB, bytes([0]) + bytes(range(1, 65))) * 300_000),
    "50,000 Huffman tables": lambda: with_segments(segment(0xC4, b"\0\0\1" + bytes(14) + b"\0") * 50_000),
    "5 million fill bytes": lambda: with_segments(b"\xff" * 5_000_000),
    "5 million restart markers": lambda: noise("JPEG")[:-2] + b"\xff\xd0" * 5_000_000 + b"\xff\xd9",
    "30 MB after the end": lambda: noise("JPEG") + bytes(30_000_000),
    "10,000 scans": partial(_many_scans, 10_000, 64),
    "30 scans of 4000 x 4000": partial(_many_scans, 20, 4000),
    "progressive, 8000 x 8000": partial(plain, "JPEG", progressive=True),
    "progressive noise, 4000 x 4000": lambda: noise("JPEG", 4000, 4000, progressive=True, quality=60),
    "65000 x 980, a few bytes of data": partial(resized_jpeg, 65000, 980),
    "8000 x 8000, a few bytes of data": partial(resized_jpeg, SIDE, SIDE),
    "progressive 8000 x 8000, a few bytes of data": lambda: resized_jpeg(SIDE, SIDE, noise("JPEG", progressive=True)),
    "arithmetic coding, 8000 x 8000": partial(resized_jpeg, SIDE, SIDE, frame=0xC9),
    "arithmetic coding, progressive, 8000 x 8000": lambda: resized_jpeg(
        SIDE, SIDE, noise("JPEG", progressive=True), frame=0xCA
    ),
    "lossless JPEG, 8000 x 8000": partial(resized_jpeg, SIDE, SIDE, frame=0xC3),
    "a height of zero": partial(resized_jpeg, 64, 0),
    "CMYK, 7000 x 7000": partial(_coloured_jpeg, "CMYK", 7000),
    "grey, 8000 x 8000": partial(_coloured_jpeg, "L", SIDE),
    "shown turned, 8000 x 8000": lambda: _coloured_jpeg("RGB", SIDE, exif=_orientation(6)),
    "an index of 3,900 further images": partial(_multi_picture, 3900),
    "an index of 4 billion images": partial(_multi_picture, 2**28 - 1),
    "200 images in one file": lambda: saved(
        Image.new("RGB", (64, 64)), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 64))] * 199
    ),
}

CASES: Mapping[str, Mapping[str, MakeFile]] = {
    "bmp": BMP, "webp": WEBP, "tiff": TIFF, "png": PNG, "gif": GIF, "jpeg": JPEG,
}  # fmt: skip

LEGITIMATE: Mapping[str, MakeFile] = {
    "a baseline JPEG of 50 megapixels": lambda: saved(
        Image.effect_noise((1024, 768), 40).resize((8192, 6144), Image.Resampling.BILINEAR).convert("RGB"), "JPEG"
    ),
    "an RGBA PNG of 16 megapixels": lambda: saved(
        Image.effect_noise((512, 512), 40).resize((4000, 4000)).convert("RGBA"), "PNG", compress_level=1
    ),
    "a WebP of 12 megapixels": lambda: saved(
        Image.effect_noise((512, 384), 40).resize((4000, 3000)).convert("RGB"), "WEBP", method=0
    ),
}
