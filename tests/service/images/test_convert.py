"""Pillow's images become RGB in bands, the same as in one piece, and turned as they are shown."""

import numpy as np
import pytest
from PIL import Image

from service.images import convert
from service.images.convert import as_stored, copy_pixels, write_rgb

SIZE = (37, 53)  # width, height
RNG = np.random.default_rng(0)


def noise(mode: str) -> Image.Image:
    if mode in ("I", "F"):
        return Image.fromarray(RNG.normal(0, 1e6, SIZE[::-1]).astype(np.int32 if mode == "I" else np.float32))
    if mode == "I;16":
        return Image.fromarray(RNG.integers(0, 2**16, SIZE[::-1], dtype=np.uint16))
    rgba = Image.fromarray(RNG.integers(0, 256, (*SIZE[::-1], 4), dtype=np.uint8))
    return rgba.convert("RGB").convert(mode) if mode in ("P", "CMYK", "YCbCr") else rgba.convert(mode)


def whole(image: Image.Image) -> np.ndarray:
    """Return the image as RGB, converted in one piece."""
    if image.mode == "I;16":
        grey = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
    elif image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        grey = np.rint((values - values.min()) * (255.0 / (values.max() - values.min())))
    else:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return np.array(image.convert("RGB"))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("band", [20, 100, 2**18])  # part of a row, some rows, the whole image
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_bands_are_as_the_whole(mode, band, monkeypatch):
    monkeypatch.setattr(convert, "BAND_PIXELS", band)
    image, pixels = noise(mode), np.zeros((*SIZE[::-1], 3), np.uint8)
    write_rgb(image, pixels)
    assert np.array_equal(pixels, whole(image))


def test_a_transparent_colour_lies_over_white_in_every_band(monkeypatch):
    monkeypatch.setattr(convert, "BAND_PIXELS", 100)
    image, pixels = noise("P"), np.zeros((*SIZE[::-1], 3), np.uint8)
    image.info["transparency"] = image.getpixel((0, 0))
    write_rgb(image, pixels)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(pixels, whole(image))


def test_an_image_of_one_value_is_black():
    pixels = np.ones((2, 2, 3), np.uint8)
    write_rgb(Image.new("F", (2, 2), 5.0), pixels)
    assert not pixels.any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_view_turns_what_is_written_to_it(orientation):
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's transpositions: a clockwise quarter is ROTATE_270
    stored = noise("RGB")
    shown = stored if orientation == 1 else stored.transpose(Image.Transpose(turn[orientation]))
    pixels = np.zeros((shown.height, shown.width, 3), np.uint8)
    copy_pixels(np.asarray(stored), as_stored(pixels, orientation))
    assert np.array_equal(pixels, np.asarray(shown))
