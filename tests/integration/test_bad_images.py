"""Damaged, malicious and unusual images through the whole service: each has its status and message."""

import io
import struct
import zlib

import pytest
from PIL import Image

from tests.service.exchange import check_problem

pytestmark = pytest.mark.usefixtures("next_request_is_served")


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header has that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_400(service, cat_jpeg, part):
    check_problem(service.detect(cat_jpeg[: int(len(cat_jpeg) * part)]), 400, "JPEG", "send the whole file")


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_half_an_image_of_any_format_is_400(service, format):
    file = io.BytesIO()
    Image.effect_noise((120, 90), 80).convert("RGB").save(file, format)
    check_problem(service.detect(file.getvalue()[: len(file.getvalue()) // 2]), 400, "cannot be decoded")


def test_a_text_file_named_jpg_is_415(service):
    form = {"image": ("holiday.jpg", b"Dear diary, today I was not an image.", "image/jpeg")}
    check_problem(service.client.post("/detect", files=form), 415, "JPEG, PNG, WebP")
    check_problem(service.detect(b"BMW makes cars, not images, and this is a text."), 415)


def test_an_unsupported_image_is_415(service):
    check_problem(service.detect(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), 415)


def test_an_empty_body_is_400(service):
    check_problem(service.detect(b""), 400, "empty", "send the image")


def test_an_image_of_one_pixel_is_accepted(service, encoded):
    response = service.detect(encoded((1, 1)))
    assert response.status_code == 200
    assert response.json()["image"] == {"width": 1, "height": 1}


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (1999, 2000)])
def test_thin_and_large_images_within_the_limit_are_accepted(service, encoded, size):
    response = service.detect(encoded(size))
    assert response.status_code == 200, response.text
    assert response.json()["image"] == {"width": size[0], "height": size[1]}


def test_a_small_file_of_400_megapixels_is_413_before_it_is_decoded(service):
    bomb = io.BytesIO()
    Image.new("1", (20000, 20000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    check_problem(service.detect(bomb.getvalue()), 413, "20000 x 20000", "send a smaller one")
    check_problem(service.detect(png_header(2**31 - 1, 2**31 - 1)), 413)


def test_an_image_without_pixels_is_400(service):
    check_problem(service.detect(png_header(0, 10)), 400)
