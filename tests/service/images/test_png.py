"""The chunks of a PNG are few, and its metadata may lie behind the pixels."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from service.errors import BadImage
from service.images.decoding import decode
from service.images.png import MAX_CHUNKS, MAX_COMPRESSED_CHUNKS, check_chunks
from tests.service.corpus import chunk


def save() -> tuple[bytes, bytes]:
    """Return a PNG of 8 x 6 pixels, up to its pixels and from them."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "PNG")
    data = file.getvalue()
    pixels = data.index(b"IDAT") - 4
    return data[:pixels], data[pixels:]


@pytest.mark.parametrize(
    "flood",
    [
        chunk(b"tEXt", b"") * MAX_CHUNKS,
        chunk(b"IDAT", b"") * MAX_CHUNKS,
        chunk(b"zTXt", b"\0\0" + zlib.compress(bytes(2**20 - 1))) * (MAX_COMPRESSED_CHUNKS + 1),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20 - 1))) * (MAX_COMPRESSED_CHUNKS + 1),
    ],
    ids=["texts", "no pixels", "compressed texts", "profiles"],
)
def test_a_flood_of_chunks_is_refused(flood):
    begin, end = save()
    with pytest.raises(BadImage, match="chunks"):
        check_chunks(begin + flood + end)


def test_an_orientation_behind_the_pixels_is_applied():
    begin, end = save()
    exif = Image.Exif()
    exif[0x0112] = 6
    late = end[:-12] + chunk(b"eXIf", exif.tobytes()[6:]) + end[-12:]
    assert decode(begin + late, max_pixels=100).shape == (8, 6, 3)


def test_damaged_metadata_behind_the_pixels_changes_nothing():
    begin, end = save()
    late = end[:-12] + chunk(b"eXIf", b"noise") + chunk(b"zTXt", b"a\0\1") + end[-12:]
    with pytest.raises(BadImage):  # Pillow refuses an unknown compression
        decode(begin + late, max_pixels=100)
    late = end[:-12] + chunk(b"eXIf", b"noise") + end[-12:]
    assert np.array_equal(decode(begin + late, max_pixels=100), decode(begin + end, max_pixels=100))
