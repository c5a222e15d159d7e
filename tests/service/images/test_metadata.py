"""The orientation is read from Exif or XMP, whatever else they hold."""

import pytest
from PIL import Image

from service.images.metadata import read_orientation


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_and_of_xmp(orientation):
    assert read_orientation({"exif": exif(orientation)}) == orientation
    assert read_orientation({"xmp": b'<x tiff:Orientation="%d"/>' % orientation}) == orientation


@pytest.mark.parametrize(
    "info", [{}, {"exif": exif(0)}, {"exif": exif(9)}, {"exif": b"Exif\0\0II*\0\xff\xff\xff\xff"}, {"exif": b"noise"}]
)
def test_none_or_an_invalid_one_is_upright(info):
    assert read_orientation(info) == 1
