"""What decoding takes is known from the header: ordinary images pass at the defaults, hostile ones do not."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from service.errors import TooLarge
from service.images.cost import MAX_SECONDS, draw_cost
from service.images.decoding import open_image
from tests.service import corpus

BUDGET = 512 * 2**20  # the default of ``image_memory_bytes``
MAX_PIXELS = 64_000_000


def save(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def enlarged(data: bytes, format: str, width: int, height: int) -> bytes:
    """Return an image file whose header says another size."""
    if format == "JPEG":
        frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]
    if format == "PNG":
        head = struct.pack(">II", width, height) + data[24:29]
        return data[:8] + corpus.chunk(b"IHDR", head) + data[33:]
    return data[:26] + struct.pack("<HH", width, height) + data[30:]


SMALL = Image.new("RGB", (16, 16), (200, 10, 60))


@pytest.mark.parametrize(
    ("data", "format", "size"),
    [
        (save(SMALL, "JPEG"), "JPEG", (8660, 5774)),
        (save(SMALL.convert("RGBA"), "PNG"), "PNG", (4000, 4000)),
        (save(SMALL, "WEBP"), "WEBP", (4000, 3000)),
    ],
    ids=["JPEG of 50 megapixels", "PNG with alpha of 16", "WebP of 12"],
)
def test_large_ordinary_images_fit_the_default_budget(data, format, size):
    image = open_image(enlarged(data, format, *size), max_pixels=MAX_PIXELS)
    cost = image.cost(None)
    file_bytes = size[0] * size[1] // 2
    assert cost.bytes + 3 * file_bytes < BUDGET
    assert 0.1 < cost.seconds < MAX_SECONDS


def test_a_progressive_jpeg_takes_more_memory_and_every_pass_more_time():
    baseline, progressive = (save(SMALL, "JPEG", progressive=flag) for flag in (False, True))
    scan = progressive.rindex(b"\xff\xda")
    passes = progressive[:scan] + progressive[scan : scan + 14] * 30 + progressive[scan:]
    costs = [
        open_image(enlarged(data, "JPEG", 4000, 3000), max_pixels=MAX_PIXELS).cost(None)
        for data in (baseline, progressive, passes)
    ]
    assert costs[0].bytes < costs[1].bytes
    assert costs[0].seconds < costs[1].seconds < costs[2].seconds


def test_a_reduced_jpeg_takes_less_memory():
    image = open_image(enlarged(save(SMALL, "JPEG"), "JPEG", 8000, 6000), max_pixels=MAX_PIXELS)
    assert image.cost((700, 900)).bytes < image.cost(None).bytes / 5


@pytest.mark.parametrize("name", [name for name, _ in corpus.costly()])
def test_small_files_that_would_take_long_are_refused_from_the_header(name):
    data = dict(corpus.costly())[name]
    with pytest.raises(TooLarge):
        open_image(data, max_pixels=MAX_PIXELS)


def test_the_sentence_says_what_to_do():
    data = dict(corpus.costly())["BMP, run-length, a pixel a row"]
    with pytest.raises(TooLarge, match=r"take too long; send a smaller one"):
        open_image(data, max_pixels=MAX_PIXELS)


def test_the_strip_of_a_tiff_is_held_beside_the_image():
    image = Image.new("RGB", (600, 400))
    one = save(image, "TIFF", compression="tiff_adobe_deflate", strip_size=2**30)
    many = save(image, "TIFF", compression="tiff_adobe_deflate")
    costs = [open_image(data, max_pixels=MAX_PIXELS).cost(None).bytes for data in (many, one)]
    assert costs[1] - costs[0] > 600 * 400 * 2


def test_the_cost_of_drawing_grows_with_the_image_and_is_more_for_png():
    small, large, png = (
        draw_cost(side, side, media_type)
        for side, media_type in ((100, "image/jpeg"), (4000, "image/jpeg"), (4000, "image/png"))
    )
    assert small.bytes < large.bytes < png.bytes
    assert small.seconds < large.seconds < png.seconds
    assert large.bytes > 4000 * 4000 * (3 + 4)  # the pixels, and the image that is drawn on


def test_memory_is_at_least_that_of_the_image_and_its_pixels():
    rng = np.random.default_rng(0)
    for mode in ("L", "RGB", "RGBA", "P"):
        image = Image.fromarray(rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)).convert(mode)
        cost = open_image(save(image, "PNG"), max_pixels=MAX_PIXELS).cost(None)
        assert cost.bytes > 90 * 70 * (3 + (1 if mode in "LP" else 4))
