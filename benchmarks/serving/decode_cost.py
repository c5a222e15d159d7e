"""Measure what decoding and drawing cost, beside what ``service/images/cost.py`` estimates from the header.

    python -m benchmarks.serving.decode_cost                 # all; with --only WORD the rows that have it in their name

For images of 16 megapixels of every format, mode and compression: peak memory (resident, and of address space, which is
what a limit counts) beyond that of an idle process that holds the file, and processor time. Each is decoded in a fresh
process, after a small one of its kind. The content is a photograph's: smooth, with noise. Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.lib import machine, results

SIDE, SMALL = 4000, 64
MAX_PIXELS = 2**40
MIB = 2**20
Case = tuple[str, bytes, int]  # name, file, the part of its size that a JPEG is decoded at


# --------------------------------------------------------------------------------------------------------------- files
def photograph(side: int) -> Image.Image:
    """Return an image of smooth colours with noise, RGBA, which compresses about as photographs do."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (side // 32 + 2, side // 32 + 2, 4), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((pixels + rng.integers(-6, 7, (side, side, 1))).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def jpegs(side: int) -> Iterator[Case]:
    image = photograph(side).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    baseline = encode(image, "JPEG", quality=90)
    yield "JPEG, baseline, 4:2:0", baseline, 1
    yield "JPEG, baseline, 4:4:4, quality 100", encode(image, "JPEG", quality=100, subsampling=0), 1
    yield "JPEG, baseline, 4:2:0, turned", encode(image, "JPEG", quality=90, exif=turned), 1
    yield "JPEG, baseline, 4:2:0, at an eighth", baseline, 8
    yield "JPEG, baseline, 4:2:0, at a half, turned", encode(image, "JPEG", quality=90, exif=turned), 2
    yield "JPEG, baseline, 4:2:0, damaged", damaged_jpeg(baseline), 1
    yield "JPEG, baseline, 4:2:0, damaged, turned", damaged_jpeg(encode(image, "JPEG", quality=90, exif=turned)), 1
    yield "JPEG, baseline, grey", encode(image.convert("L"), "JPEG", quality=90), 1
    yield "JPEG, baseline, CMYK", encode(image.convert("CMYK"), "JPEG", quality=90), 1
    progressive = encode(image, "JPEG", quality=90, progressive=True)
    yield "JPEG, progressive, 4:2:0", progressive, 1
    yield "JPEG, progressive, 4:2:0, at an eighth", progressive, 8
    yield (
        "JPEG, progressive, 4:4:4, quality 100",
        encode(image, "JPEG", quality=100, progressive=True, subsampling=0),
        1,
    )
    yield "JPEG, progressive, CMYK", encode(image.convert("CMYK"), "JPEG", quality=90, progressive=True), 1
    scan = progressive.rindex(b"\xff\xda")
    yield (
        "JPEG, progressive, 40 more passes",
        progressive[:scan] + progressive[scan : scan + 14] * 40 + progressive[scan:],
        1,
    )


def damaged_jpeg(data: bytes) -> bytes:
    """Return a JPEG of which a few bytes near the end are overwritten: libjpeg warns of it, and Pillow tolerates it."""
    return data[:-90] + b"\xff\xd0" * 20 + data[-50:]


def pngs(side: int) -> Iterator[Case]:
    image = photograph(side)
    for mode in ("1", "L", "LA", "RGB", "RGBA"):
        yield f"PNG, {mode}", encode(image.convert(mode), "PNG"), 1
    palette = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    yield "PNG, palette", encode(palette, "PNG"), 1
    yield "PNG, palette, transparent", encode(palette, "PNG", transparency=bytes(range(256))), 1
    yield "PNG, RGB, transparent colour", encode(image.convert("RGB"), "PNG", transparency=(1, 2, 3)), 1
    wide = np.asarray(image).astype(np.uint16) * 257
    yield "PNG, grey, 16 bits", encode(Image.fromarray(wide[..., 0]), "PNG"), 1
    yield "PNG, grey and alpha, 16 bits", png(wide[..., :2], 16, 4, interlace=False), 1
    yield "PNG, RGBA, 16 bits", png(wide, 16, 6, interlace=False), 1
    yield "PNG, RGBA, interlaced", png(np.asarray(image), 8, 6, interlace=True), 1
    yield "PNG, RGBA, 16 bits, interlaced", png(wide, 16, 6, interlace=True), 1


def png(samples: np.ndarray, bits: int, colour: int, *, interlace: bool) -> bytes:
    """Return a PNG of ``samples`` [h, w, channels], unfiltered; interlaced by Adam7."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def rows(part: np.ndarray) -> bytes:
        raw = np.ascontiguousarray(part.astype(">u2" if bits == 16 else np.uint8)).view(np.uint8)
        return np.pad(raw.reshape(len(part), -1), ((0, 0), (1, 0))).tobytes()

    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    steps = passes if interlace else ((0, 0, 1, 1),)
    body = b"".join(rows(samples[y::down, x::right]) for y, x, down, right in steps)
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, int(interlace))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body, 1)) + chunk(b"IEND", b"")


def webps(side: int) -> Iterator[Case]:
    image = photograph(side)
    rgb = image.convert("RGB")
    yield "WebP, lossy", encode(rgb, "WEBP", method=0), 1
    yield "WebP, lossy, quality 100", encode(rgb, "WEBP", method=0, quality=100), 1
    yield "WebP, lossy, alpha", encode(image, "WEBP", method=0), 1
    yield "WebP, lossless", encode(rgb, "WEBP", lossless=True, method=0), 1
    yield "WebP, lossless, alpha", encode(image, "WEBP", lossless=True, method=0), 1
    frames = [rgb.transpose(Image.Transpose.ROTATE_180)]
    yield "WebP, animated", encode(rgb, "WEBP", method=0, save_all=True, append_images=frames), 1


def gifs(side: int) -> Iterator[Case]:
    palette = photograph(side).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    yield "GIF", encode(palette, "GIF", interlace=0), 1
    yield "GIF, interlaced, transparent", encode(palette, "GIF", interlace=1, transparency=3), 1
    yield "GIF, grey", encode(photograph(side).convert("L"), "GIF"), 1


def bmps(side: int) -> Iterator[Case]:
    image = photograph(side)
    for mode in ("1", "L", "RGB", "RGBA"):
        yield f"BMP, {mode}", encode(image.convert(mode), "BMP"), 1
    pixels, row = side * side, b"\0\0"
    yield "BMP, RLE8, long runs", bmp_rle(side, 1, (b"\xff\1" * (side // 255 + 1) + row) * side), 1
    yield "BMP, RLE8, a pixel a run", bmp_rle(side, 1, (b"\1\1" * side + row) * side), 1
    yield "BMP, RLE8, a pixel a row", bmp_rle(side, 1, (b"\1\1" + row) * side), 1
    full = (b"\xff\1" * (side // 255 + 1) + row) * side
    yield "BMP, RLE8, a run of no pixel for each", bmp_rle(side, 1, b"\0\2\0\0" * pixels + full), 1
    yield "BMP, RLE4, long runs", bmp_rle(side, 2, (b"\xff\1" * (side // 255 + 1) + row) * side), 1
    yield "BMP, RLE4, literal", bmp_rle(side, 2, (b"\0\xfe" + bytes(128)) * (pixels // 254 + 1)), 1


def bmp_rle(side: int, compression: int, body: bytes) -> bytes:
    bits = 8 if compression == 1 else 4
    colours = bytes(range(256)) * 4 if bits == 8 else bytes(range(64))
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, compression, len(body), 0, 0, 0, 0)
    start = 54 + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + colours + body


def tiffs(side: int) -> Iterator[Case]:
    image = photograph(side)
    rgb, turned = image.convert("RGB"), {274: 6}
    for mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "LAB"):
        converted = image.convert("RGB") if mode == "LAB" else image.convert(mode)
        if mode == "LAB":
            converted = Image.frombytes("LAB", converted.size, converted.tobytes())
        yield f"TIFF, {mode}, uncompressed", encode(converted, "TIFF"), 1
    yield "TIFF, RGB, uncompressed, turned", encode(rgb, "TIFF", tiffinfo=turned), 1
    wide = np.asarray(image)[..., 0].astype(np.uint16) * 257
    yield "TIFF, 16 bits, uncompressed", encode(Image.fromarray(wide), "TIFF"), 1
    yield "TIFF, 32 bits, uncompressed", encode(Image.fromarray(wide.astype(np.int32)), "TIFF"), 1
    yield "TIFF, float, LZW", encode(Image.fromarray(wide.astype(np.float32)), "TIFF", compression="tiff_lzw"), 1
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        yield f"TIFF, RGB, {name}", encode(rgb, "TIFF", compression=name), 1
    yield (
        "TIFF, RGBA, deflate, one strip",
        encode(image, "TIFF", compression="tiff_adobe_deflate", strip_size=1 << 31, tiffinfo=turned),
        1,
    )
    yield "TIFF, RGB, jpeg, one strip", encode(rgb, "TIFF", compression="jpeg", strip_size=1 << 31), 1
    yield "TIFF, 1, group 3", encode(image.convert("1"), "TIFF", compression="group3"), 1
    yield "TIFF, 1, group 4", encode(image.convert("1"), "TIFF", compression="group4"), 1
    yield "TIFF, RGB, deflate, one tile of twice the sides", tiff_with_one_tile(side, 2 * side - 2 * side % 16), 1


def tiff_with_one_tile(side: int, tile: int) -> bytes:
    data = zlib.compress(np.random.default_rng(0).integers(0, 4, tile * tile * 3, dtype=np.uint8).tobytes(), 1)
    data += bytes(len(data) % 2)
    start = 8 + len(data)
    extra = start + 2 + 12 * 11 + 4
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 3, extra), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3)]
    tags += [(284, 3, 1, 1), (322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, 8), (325, 4, 1, len(data))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", start) + data + directory + bytes(4) + struct.pack("<3H", 8, 8, 8)


KINDS: tuple[Callable[[int], Iterator[Case]], ...] = (jpegs, pngs, webps, gifs, bmps, tiffs)


# ----------------------------------------------------------------------------------------------------------- measuring
def memory(field: str) -> int:
    """Return a field of ``/proc/self/status`` in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024


def measure(small: str, large: str, part: int) -> None:
    """Decode a file, after a small one of its kind; print what that took, and what was estimated, as JSON."""
    from service.images import decoding

    decoding.prepare_pillow()
    decoding.decode(Path(small).read_bytes(), max_pixels=MAX_PIXELS)
    data = Path(large).read_bytes()
    decoding.MAX_SECONDS = float("inf")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    size, resident, begin = memory("VmSize"), memory("VmRSS"), time.process_time()
    image = decoding.open_image(data, max_pixels=MAX_PIXELS)
    opened = time.process_time() - begin
    canvas = (image.height // part, image.width // part)
    estimate = image.cost(canvas)
    pixels = np.empty((*image.decoded_size(canvas), 3), np.uint8)
    image.decode_into(pixels, canvas)
    seconds = time.process_time() - begin
    print(
        json.dumps(
            {
                "pixels": image.height * image.width,
                "file_bytes": len(data),
                "resident": memory("VmHWM") - resident,
                "address_space": memory("VmPeak") - size,
                "estimated_bytes": estimate.bytes,
                "open_seconds": opened,
                "seconds": seconds,
                "estimated_seconds": estimate.seconds,
            }
        )
    )


def measure_drawing(media_type: str) -> None:
    """Draw boxes on an image of that size; print what that took, and what was estimated, as JSON."""
    from service.images.cost import draw_cost
    from service.rendering.boxes import draw_boxes, encode

    def draw(image: np.ndarray) -> None:
        side = len(image)
        corners = np.random.default_rng(0).uniform(0, side, (300, 2, 2))
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
        encode(draw_boxes(image, boxes, ["pottedplant 0.87"] * 100 + [""] * 200, [1] * 300), media_type)

    image = np.array(photograph(SIDE).convert("RGB"))
    draw(image[:SMALL, :SMALL].copy())
    Path("/proc/self/clear_refs").write_text("5")
    resident, begin = memory("VmRSS"), time.process_time()
    draw(image)
    estimate = draw_cost(SIDE, SIDE, media_type)
    print(
        json.dumps(
            {
                "pixels": SIDE * SIDE,
                "file_bytes": 0,
                "resident": memory("VmHWM") - resident + image.nbytes,
                "address_space": memory("VmHWM") - resident + image.nbytes,
                "estimated_bytes": estimate.bytes,
                "open_seconds": 0.0,
                "seconds": time.process_time() - begin,
                "estimated_seconds": estimate.seconds,
            }
        )
    )


def run_child(*arguments: str) -> dict[str, Any]:
    """Return what a fresh process measures, or the last line of its error."""
    command = [sys.executable, "-m", "benchmarks.serving.decode_cost", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def measure_all(word: str) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        small_file, large_file = Path(folder, "small"), Path(folder, "large")
        for kind in KINDS:
            small = {name: data for name, data, _ in kind(SMALL)}
            for name, data, part in kind(SIDE):
                if word not in name:
                    continue
                small_file.write_bytes(small[name])
                large_file.write_bytes(data)
                rows.append({"name": name, **run_child("--measure", str(small_file), str(large_file), str(part))})
                print(rows[-1], file=sys.stderr, flush=True)
    for media_type in ("image/jpeg", "image/png"):
        if word in f"drawn, {media_type}":
            rows.append({"name": f"drawn, {media_type}", **run_child("--draw", media_type)})
    return rows


def table(result: dict[str, Any]) -> results.Table:
    """Return the figures by pixel."""

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        if "error" in row:
            return (row["name"], row["error"], "", "", "", "", "")
        pixels = row["pixels"]
        return (
            row["name"],
            f"{row['file_bytes'] / pixels:.2f}",
            f"{row['resident'] / pixels:.1f}",
            f"{row['address_space'] / pixels:.1f}",
            f"{row['estimated_bytes'] / pixels:.1f}",
            f"{row['seconds'] / pixels * 1e9:.0f}",
            f"{row['estimated_seconds'] / pixels * 1e9:.0f}",
        )

    megapixels = SIDE * SIDE // 10**6
    return results.Table(
        f"Images of {megapixels} megapixels: bytes and nanoseconds of processor time for each pixel. "
        f"{machine.sentence(result['machine'])}.",
        ("image", "file", "resident", "address space", "estimated", "ns", "estimated ns"),
        [cells(row) for row in result["rows"]],
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--draw", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        small, large, part = arguments.measure
        measure(small, large, int(part))
    elif arguments.draw:
        measure_drawing(arguments.draw)
    else:
        rows = measure_all(arguments.only)
        table({"machine": machine.describe("cpu"), "rows": rows}).print()


if __name__ == "__main__":
    main()
