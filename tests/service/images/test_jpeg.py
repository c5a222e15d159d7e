"""JPEGs: the header in linear time, and the pixels that Pillow gives."""

import io
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from service.errors import BadImage
from service.images.convert import as_stored
from service.images.jpeg import MAX_SEGMENTS, count_passes, decode_jpeg, read_header

DATA = Path(os.environ.get("FRCNN_DATA", Path(__file__).parents[4] / "shared/data"))
SEGMENT = b"\xff\xe1" + struct.pack(">H", 18) + b"Exif\0\0" + b"x" * 10


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height)).convert(mode)


def save(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})  # type: ignore[arg-type]
    return file.getvalue()


def with_pillow(data: bytes, part: int) -> np.ndarray:
    """Return the pixels as Pillow's own decoder and its resizing give them, as stored."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.width // part, image.height // part
        extent = 0, 0, image.width / part, image.height / part
        image.draft(None, (width, height))
        image.load()
        reduced = image if image.size == (width, height) else image.resize((width, height), 2, box=extent)
        return np.asarray(reduced.convert("RGB"))


def decode(data: bytes, part: int = 1) -> np.ndarray:
    header = read_header(data)
    pixels = np.zeros((header.height // part, header.width // part, 3), np.uint8)
    decode_jpeg(data, header, part, pixels)
    return pixels


OPTIONS = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"subsampling": "4:1:1"},
    {"progressive": True},
    {"restart_marker_blocks": 2},
    {"keep_rgb": True},
]


@pytest.mark.parametrize("part", [1, 2, 4, 8])
@pytest.mark.parametrize("options", OPTIONS)
def test_pixels_are_those_of_pillow(options, part):
    for width, height in ((64, 48), (101, 77), (33, 35), (9, 17)):
        data = save(noise(width, height), **options)
        assert np.array_equal(decode(data, part), with_pillow(data, part))


@pytest.mark.parametrize("part", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_pixels_of_grey_and_cmyk_are_those_of_pillow(mode, part):
    for progressive in (False, True):
        data = save(noise(101, 77, mode), progressive=progressive)
        assert np.array_equal(decode(data, part), with_pillow(data, part))


@pytest.mark.data
def test_pixels_of_photographs_are_those_of_pillow():
    files = [*sorted((DATA / "bccd/JPEGImages").glob("*.jpg"))[:5], *sorted(DATA.glob("voc20/images/*/*.jpg"))[:20]]
    if not files:
        pytest.skip(f"no data sets in {DATA}")
    for file in files:
        data = file.read_bytes()
        for part in (1, 4):
            assert np.array_equal(decode(data, part), with_pillow(data, part)), file.name


def test_pixels_are_written_through_a_view():
    data = save(noise(101, 77))
    pixels = np.zeros((101, 77, 3), np.uint8)
    decode_jpeg(data, read_header(data), 1, as_stored(pixels, 6))
    assert np.array_equal(pixels, np.rot90(with_pillow(data, 1), -1))


def test_damage_that_pillow_tolerates_is_tolerated():
    data = save(noise(400, 300))
    middle = len(data) // 2
    damaged = data[:middle] + b"\x12" * 40 + data[middle + 40 :]
    with pytest.raises(ValueError, match=r"."):
        simplejpeg.decode_jpeg(damaged)
    assert np.array_equal(decode(damaged), with_pillow(damaged, 1))


def test_what_pillow_decodes_instead_has_no_metadata_that_costs_it_time(monkeypatch):
    data = save(noise(40, 30, "CMYK"))
    opened = []
    pillow_open = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: opened.append(file) or pillow_open(file, **options))
    decode(data[:2] + SEGMENT * 100 + data[2:])
    assert len(opened[0].getvalue()) <= len(data)


def test_the_header_of_a_photograph():
    exif = Image.Exif()
    exif[0x0112] = 6
    header = read_header(save(noise(64, 48), progressive=True, exif=exif, subsampling=2))
    assert (header.width, header.height, header.components, header.orientation) == (64, 48, 3, 6)
    assert header.buffered
    assert header.coefficients == 1.5
    assert not read_header(save(noise(64, 48))).buffered


def test_exif_segments_are_walked_and_too_many_are_refused():
    data = save(noise(64, 48))
    assert np.array_equal(decode(data[:2] + SEGMENT * 80_000 + data[2:]), decode(data))
    with pytest.raises(BadImage, match="segments"):
        read_header(data[:2] + b"\xff\xe1\0\2" * MAX_SEGMENTS + data[2:])


def test_padding_of_a_marker_is_skipped():
    data = save(noise(64, 48))
    assert read_header(data[:2] + b"\xff" * 1_000_000 + data[2:]).width == 64


@pytest.mark.parametrize("length", [3, 20, 300])
def test_a_header_without_end_is_refused(length):
    with pytest.raises(ValueError, match=r"header|image data"):
        read_header(save(noise(64, 48))[:length])


def passes(data: bytes, most: int = 100) -> int:
    return count_passes(data, read_header(data), most)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_passes_are_the_scans_of_the_image_alone(options):
    thumbnail = save(noise(16, 16))
    data = save(noise(64, 48), exif=b"Exif\0\0" + thumbnail, **options)
    expected = 10 if "progressive" in options else 1
    scan = b"\xff\xda\0\x02"
    assert passes(data) == expected
    assert passes(data + scan * 200) == expected, "a video or another image behind it"
    assert passes(data[:-2] + b"\xff\xfe\0\x0a" + scan * 2 + data[-2:]) == expected, "a comment"
    assert passes(data[:-2]) == expected
    assert passes(data[:-2] + scan * 3 + data[-2:]) == expected + 3
    assert passes(data[:-2] + scan * 200 + data[-2:]) == 101


@pytest.mark.parametrize("data", [b"\xff\xd3" * 3_000_000, b"\xff" * 1_000_000, b"\xff\0" * 1_000_000])
def test_restarts_padding_and_data_are_skipped_in_linear_time(data):
    image = save(noise(64, 48))
    start = read_header(image).segments[-1][1]
    before = time.process_time()
    assert passes(image[:start] + data + b"\xff\xda\0\x02" + image[start:]) == 2
    assert time.process_time() - before < 1


def test_too_many_segments_between_scans_are_refused():
    image = save(noise(64, 48))
    with pytest.raises(BadImage, match="segments"):
        passes(image[:-2] + b"\xff\xfe\0\x02" * MAX_SEGMENTS)


def test_the_header_says_whether_the_coding_is_arithmetic():
    data = save(noise(64, 48), progressive=True)
    assert not read_header(data).arithmetic
    assert read_header(data.replace(b"\xff\xc2", b"\xff\xca", 1)).arithmetic
