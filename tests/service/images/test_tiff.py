"""The directory of a TIFF is checked before its values become objects."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from service.errors import BadImage, TooLarge
from service.images.decoding import decode, open_image
from service.images.tiff import MAX_ENTRIES, MAX_PARTS, check_directory

GREY = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]


def tiff(entries: list[tuple[int, int, int, int]], rest: bytes = b"") -> bytes:
    """Return a TIFF of one directory, and what follows it."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4) + rest


@pytest.mark.parametrize(
    "entries",
    [
        [(40_000, 7, 1, 0)] * (MAX_ENTRIES + 1),
        [*GREY, (273, 4, MAX_PARTS + 1, 8)],
        [*GREY, (324, 4, MAX_PARTS + 1, 8)],
        [*GREY, (282, 5, 2000, 8)],
        [*GREY, (34853, 4, 2000, 8)],
    ],
    ids=["tags", "strips", "tiles", "fractions", "directories"],
)
def test_more_entries_or_values_than_any_program_writes_are_refused(entries):
    with pytest.raises(BadImage, match="save it again"):
        check_directory(tiff(entries))


def test_text_and_bytes_may_be_long():
    check_directory(tiff([*GREY, (270, 2, 10**6, 8), (700, 1, 10**6, 8)]))


def test_more_strips_than_any_program_writes_are_refused():
    rows = MAX_PARTS + 1
    entries = [(256, 4, 1, 1), (257, 4, 1, rows), *GREY[2:], (273, 4, 1, 8), (278, 4, 1, 1)]
    with pytest.raises(BadImage, match="strips"):
        open_image(tiff(entries, bytes(rows)), max_pixels=10**6)


def test_a_tile_over_the_limit_of_pixels_is_too_large():
    entries = [
        *GREY[:3],
        (259, 3, 1, 8),
        *GREY[4:],
        (322, 4, 1, 16384),
        (323, 4, 1, 32768),
        (324, 4, 1, 8),
        (325, 4, 1, 9),
    ]
    with pytest.raises(TooLarge, match="tiles"):
        open_image(tiff(entries), max_pixels=64_000_000)


def test_the_directories_of_metadata_are_not_read():
    """Pillow reads Exif's after decoding, and makes an object of each value: here two million fractions."""
    pixels = bytes(range(256))
    start = 8 + 2 + 12 * 9 + 4
    exif = struct.pack("<H", 1) + struct.pack("<HHII", 30_000, 5, 2**21, start) + bytes(4)
    entries = [*GREY, (273, 4, 1, start), (278, 4, 1, 16), (34665, 4, 1, start + 256)]
    image = open_image(tiff(entries, pixels + exif + bytes(2**24)), max_pixels=1000)
    file = image._file._image  # type: ignore[attr-defined]
    assert 34665 not in file.getexif()
    decoded = np.zeros((16, 16, 3), np.uint8)
    image.decode_into(decoded, None)
    assert decoded[..., 0].tobytes() == pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_in_xmp_is_applied(orientation):
    file, tagged = io.BytesIO(), io.BytesIO()
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    image.save(file, "TIFF", tiffinfo={700: b'<x tiff:Orientation="%d"/>' % orientation})
    image.save(tagged, "TIFF", tiffinfo={274: orientation})
    shown = decode(file.getvalue(), max_pixels=10)
    assert np.array_equal(shown, decode(tagged.getvalue(), max_pixels=10))
    assert shown.shape[:2] == ((3, 2) if orientation > 4 else (2, 3))


def tiled(width: int, height: int, tile_width: int, tile_height: int) -> bytes:
    """Return a grey TIFF whose tiles share their data."""
    tiles = -(-width // tile_width) * -(-height // tile_height)
    data = zlib.compress(bytes(tile_width * tile_height))
    start = 8 + 2 + 12 * 10 + 4
    entries = [(256, 4, 1, width), (257, 4, 1, height), GREY[2], (259, 3, 1, 8), *GREY[4:]]
    entries += [(322, 4, 1, tile_width), (323, 4, 1, tile_height)]
    if tiles == 1:
        return tiff([*entries, (324, 4, 1, start), (325, 4, 1, len(data))], data)
    entries += [(324, 4, tiles, start), (325, 4, tiles, start + 4 * tiles)]
    arrays = [start + 8 * tiles] * tiles + [len(data)] * tiles
    return tiff(entries, struct.pack(f"<{2 * tiles}I", *arrays) + data)


def test_all_pixels_of_tiles_that_reach_out_of_the_image_are_counted():
    narrow, wide = (
        open_image(tiled(16, 16 * 40, width, 16), max_pixels=64_000_000).cost(None).seconds for width in (16, 16_384)
    )
    assert wide - narrow == pytest.approx(40 * 16 * (16_384 - 16) * 60e-9)


def test_tiles_with_far_more_pixels_than_the_image_may_have_are_refused():
    with pytest.raises(TooLarge, match="in all, far more than the image"):
        open_image(tiled(16, 16 * 300, 1024, 16), max_pixels=1_000_000)


@pytest.mark.parametrize("size", [(100, 70), (256, 256), (300, 517)])
def test_ordinary_tiles_are_decoded(size):
    assert not decode(tiled(*size, 128, 128), max_pixels=200_000).any()


def test_the_planes_of_a_tiff_are_not_each_counted_as_an_image():
    file = io.BytesIO()
    Image.new("RGB", (300, 200)).save(file, "TIFF", compression="tiff_adobe_deflate")
    together = open_image(file.getvalue(), max_pixels=60_000)
    file = io.BytesIO()
    Image.new("RGB", (300, 200)).save(file, "TIFF", compression="tiff_adobe_deflate", tiffinfo={284: 2})
    apart = open_image(file.getvalue(), max_pixels=60_000)
    assert apart.cost(None).seconds < 1.2 * together.cost(None).seconds
