"""The header of a WebP is read without Pillow."""

import io

import pytest
from PIL import Image

from service.errors import BadImage
from service.images.webp import MAX_CHUNKS, read_header


def save(mode: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (300, 200), (9,) * len(mode)).save(file, "WEBP", **options)  # type: ignore[arg-type]
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": exif(6)}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_size_is_read_from_each_kind_of_chunk(mode, options):
    header = read_header(save(mode, **options))
    assert (header.width, header.height) == (300, 200)
    assert header.orientation == (6 if options.get("exif") else 1)


@pytest.mark.parametrize("length", [12, 16, 25])
def test_a_truncated_header_is_refused(length):
    with pytest.raises(ValueError, match="truncated"):
        read_header(save("RGB")[:length])


def test_too_many_chunks_are_refused():
    data = save("RGB", exif=exif(1))
    with pytest.raises(BadImage, match="chunks"):
        read_header(data[:30] + b"abcd\0\0\0\0" * MAX_CHUNKS + data[30:])
