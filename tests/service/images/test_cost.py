"""What decoding takes is known from the header: ordinary images pass at the defaults, hostile ones do not."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from service.errors import BadImage, TooLarge
from service.images.cost import MAX_SECONDS, draw_cost
from service.images.decoding import MAX_SCANS, open_image
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


def with_passes(count: int, frame: bytes, width: int, height: int) -> bytes:
    """Return a progressive JPEG of ``count`` scans without data."""
    data = enlarged(save(SMALL, "JPEG", progressive=True), "JPEG", width, height)
    start = data.index(b"\xff\xda")
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\x10"
    return data[:start].replace(b"\xff\xc2", frame) + scan * count + b"\xff\xd9"


def test_progressive_jpegs_of_50_megapixels_and_the_largest_file_are_decoded():
    image = open_image(with_passes(10, b"\xff\xc2", 8660, 5774) + bytes(32 * 2**20), max_pixels=MAX_PIXELS)
    assert 3 < image.cost(None).seconds < MAX_SECONDS


@pytest.mark.parametrize(("frame", "nanoseconds"), [(b"\xff\xc2", 2.7), (b"\xff\xca", 4.9)])
def test_passes_without_data_take_what_was_measured_for_both_decoders(frame, nanoseconds):
    few, many = (open_image(with_passes(n, frame, 1000, 1000), max_pixels=MAX_PIXELS).cost(None) for n in (20, 100))
    assert nanoseconds < (many.seconds - few.seconds) / 80 * 1e3 < 3 * nanoseconds


def test_more_passes_than_any_program_writes_are_refused_in_small_images_too():
    open_image(with_passes(MAX_SCANS, b"\xff\xc2", 16, 16), max_pixels=MAX_PIXELS)
    with pytest.raises(BadImage, match="more passes than any program writes"):
        open_image(with_passes(MAX_SCANS + 1, b"\xff\xc2", 16, 16), max_pixels=MAX_PIXELS)


def test_the_rows_of_a_png_take_time():
    tall, wide = (
        open_image(enlarged(save(SMALL.convert("1"), "PNG"), "PNG", *size), max_pixels=MAX_PIXELS).cost(None).seconds
        for size in ((1, 29_000_000), (29_000_000, 1))
    )
    assert tall > 2.2
    assert tall - wide == pytest.approx(29_000_000 * 70e-9, rel=0.01)


def test_the_encoder_of_png_holds_rows():
    wide, tall = (draw_cost(height, 25_000_000 // height, "image/png").bytes for height in (1, 5000))
    assert wide - tall > 14 * 25_000_000
