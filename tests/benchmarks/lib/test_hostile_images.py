import zlib

import pytest

from benchmarks.lib.hostile_images import CASES, zeros
from service.images.formats import sniff_format


@pytest.mark.parametrize("count", [0, 1, 2**20 - 1, 2**20, 3 * 2**20 + 77])
def test_zeros_are_valid_zlib(count: int) -> None:
    assert zlib.decompress(zeros(count)) == bytes(count)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bmp", "runs of 8 bits: a row of 64 million"),
        ("webp", "an animation on 8000 x 8000 with one frame of 1 x 1"),
        ("tiff", "16 x 16 in one tile of 16384 x 32768"),
        ("png", "a colour profile of 80 MB"),
        ("gif", "a comment of 10 MB"),
        ("jpeg", "80,000 EXIF segments"),
    ],
)
def test_a_hostile_file_begins_as_its_format_and_fits_into_a_body(kind: str, name: str) -> None:
    data = CASES[kind][name]()
    assert sniff_format(data) == kind.upper()
    assert len(data) < 32 * 2**20
