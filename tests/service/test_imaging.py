"""Bytes to RGB: what is shown is what is detected in."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from service.errors import BadImage, TooLarge, UnsupportedImage
from service.imaging import decode, sniff

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def shown(data: bytes) -> np.ndarray:
    pixels = decode(data, max_pixels=1_000_000)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    return pixels


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_supported_format_is_known_by_its_content_and_decoded(format):
    data = save(Image.new("RGB", (20, 10), RED), format)
    assert sniff(data) == format
    pixels = shown(data)
    assert pixels.shape == (10, 20, 3)
    assert np.abs(pixels.astype(int) - RED).max() <= 4


@pytest.mark.parametrize(("mode", "format"), [("L", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("1", "TIFF")])
def test_greyscale_has_three_equal_channels(mode, format):
    pixels = shown(save(Image.new(mode, (8, 8), 255 if mode == "1" else 77), format))
    assert np.abs(pixels.astype(int) - (255 if mode == "1" else 77)).max() <= 1


def test_a_palette_is_looked_up():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *BLUE])
    assert (shown(save(image, "PNG")) == BLUE).all()


def test_alpha_lies_over_white():
    half = save(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG")
    assert np.abs(shown(half).astype(int) - (255, 127, 127)).max() <= 1
    assert (shown(save(Image.new("LA", (4, 4), (0, 0)), "PNG")) == WHITE).all()
    assert (shown(save(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "WEBP", lossless=True)) == WHITE).all()


def test_a_transparent_palette_colour_lies_over_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *BLUE])
    assert (shown(save(image, "PNG", transparency=1)) == WHITE).all()


def test_cmyk_is_converted():
    pixels = shown(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - RED).max() <= 6


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(format):
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert shown(save(Image.fromarray(deep), format))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_thirty_two_bits_are_stretched_from_their_darkest_to_their_brightest():
    deep = np.array([[-5.0, 0.0, 5.0]], dtype=np.float32)
    assert shown(save(Image.fromarray(deep), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation, format):
    upright = Image.new("RGB", (48, 32), BLUE)
    upright.paste(RED, (0, 0, 24, 16))  # the quarter at the top left, as shown
    # What a camera held so stores: the inverse of what the viewer is told to do.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = shown(save(stored, format, exif=exif))
    assert pixels.shape == (32, 48, 3)
    assert np.abs(pixels[4:12, 4:20].astype(int) - RED).max() < 40
    assert np.abs(pixels[20:, 28:].astype(int) - BLUE).max() < 40


def test_broken_exif_on_a_whole_picture_changes_nothing():
    data = save(Image.new("RGB", (16, 8), GREEN), "JPEG")
    junk = b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    pixels = shown(data[:2] + b"\xff\xe1" + struct.pack(">H", len(junk) + 2) + junk + data[2:])
    assert pixels.shape == (8, 16, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_taken(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    assert (shown(save(frames[0], format, save_all=True, append_images=frames[1:], **options)) == RED).all()


def test_the_pixel_limit_is_exact():
    data = save(Image.new("RGB", (100, 100)), "PNG")
    assert decode(data, max_pixels=10_000).shape == (100, 100, 3)
    with pytest.raises(TooLarge):
        decode(data, max_pixels=9_999)


def test_a_format_that_is_not_asked_for_is_not_offered_to_pillow():
    for format in ("PPM", "ICO", "TGA", "PCX"):
        with pytest.raises(UnsupportedImage):
            decode(save(Image.new("RGB", (8, 8)), format), max_pixels=100)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_damaged_bytes_are_decoded_or_refused_and_nothing_else(format):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(save(Image.effect_noise((40, 30), 60).convert("RGB"), format), np.uint8)
    for _ in range(150):
        data = whole.copy()
        data[rng.integers(0, len(data), rng.integers(1, 12))] = rng.integers(0, 256)
        try:
            pixels = decode(data[: rng.integers(1, len(data) + 1)].tobytes(), max_pixels=100_000)
        except (BadImage, TooLarge, UnsupportedImage):
            continue
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
