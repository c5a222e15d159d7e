"""Decoding: every format becomes RGB as shown, and damaged bytes are refused."""

import io
import mmap
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import BadImage, ServiceError, TooLarge, UnsupportedImage
from service.images import process
from service.images.decoding import decode, decode_image
from service.images.formats import sniff_format
from tests.service import corpus

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def decode_checked(data: bytes) -> np.ndarray:
    pixels = decode(data, max_pixels=1_000_000)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    return pixels


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_supported_format_is_known_by_its_content_and_decoded(format):
    data = save(Image.new("RGB", (20, 10), RED), format)
    assert sniff_format(data) == format
    pixels = decode_checked(data)
    assert pixels.shape == (10, 20, 3)
    assert np.abs(pixels.astype(int) - RED).max() <= 4


@pytest.mark.parametrize(("mode", "format"), [("L", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("1", "TIFF")])
def test_greyscale_has_three_equal_channels(mode, format):
    pixels = decode_checked(save(Image.new(mode, (8, 8), 255 if mode == "1" else 77), format))
    assert np.abs(pixels.astype(int) - (255 if mode == "1" else 77)).max() <= 1


def test_palette_indices_become_colours():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *BLUE])
    assert (decode_checked(save(image, "PNG")) == BLUE).all()


def test_alpha_lies_over_white():
    half = save(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG")
    assert np.abs(decode_checked(half).astype(int) - (255, 127, 127)).max() <= 1
    assert (decode_checked(save(Image.new("LA", (4, 4), (0, 0)), "PNG")) == WHITE).all()
    assert (decode_checked(save(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "WEBP", lossless=True)) == WHITE).all()


def test_a_transparent_palette_colour_lies_over_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *BLUE])
    assert (decode_checked(save(image, "PNG", transparency=1)) == WHITE).all()


def test_cmyk_is_converted():
    pixels = decode_checked(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - RED).max() <= 6


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(format):
    samples = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert decode_checked(save(Image.fromarray(samples), format))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_thirty_two_bits_are_stretched_from_their_darkest_to_their_brightest():
    samples = np.array([[-5.0, 0.0, 5.0]], dtype=np.float32)
    assert decode_checked(save(Image.fromarray(samples), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation, format):
    upright = Image.new("RGB", (48, 32), BLUE)
    upright.paste(RED, (0, 0, 24, 16))  # the quarter at the top left, as shown
    # A camera in this orientation stores the inverse of what a viewer has to do.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_checked(save(stored, format, exif=exif))
    assert pixels.shape == (32, 48, 3)
    assert np.abs(pixels[4:12, 4:20].astype(int) - RED).max() < 40
    assert np.abs(pixels[20:, 28:].astype(int) - BLUE).max() < 40


def test_broken_exif_on_a_whole_image_changes_nothing():
    data = save(Image.new("RGB", (16, 8), GREEN), "JPEG")
    exif = b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    pixels = decode_checked(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    assert pixels.shape == (8, 16, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_taken(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    assert (decode_checked(save(frames[0], format, save_all=True, append_images=frames[1:], **options)) == RED).all()


def test_the_pixel_limit_is_exact():
    data = save(Image.new("RGB", (100, 100)), "PNG")
    assert decode(data, max_pixels=10_000).shape == (100, 100, 3)
    with pytest.raises(TooLarge):
        decode(data, max_pixels=9_999)


def test_formats_that_only_pillow_supports_are_refused():
    for format in ("PPM", "ICO", "TGA", "PCX"):
        with pytest.raises(UnsupportedImage):
            decode(save(Image.new("RGB", (8, 8)), format), max_pixels=100)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_damaged_bytes_are_decoded_or_refused(format):
    rng = np.random.default_rng(0)
    intact = np.frombuffer(save(Image.effect_noise((40, 30), 60).convert("RGB"), format), np.uint8)
    for _ in range(150):
        data = intact.copy()
        data[rng.integers(0, len(data), rng.integers(1, 12))] = rng.integers(0, 256)
        try:
            pixels = decode(data[: rng.integers(1, len(data) + 1)].tobytes(), max_pixels=100_000)
        except (BadImage, TooLarge, UnsupportedImage):
            continue
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


def cross(width: int, height: int) -> Image.Image:
    """Return a grey image with a black cross.

    Its lines begin at a third of the height and two fifths of the width, and are an eighth of the sides thick.
    """
    pixels = np.full((height, width, 3), 200, np.uint8)
    pixels[height // 3 : height // 3 + height // 8] = 0
    pixels[:, width * 2 // 5 : width * 2 // 5 + width // 8] = 0
    return Image.fromarray(pixels)


def cross_centre(pixels: np.ndarray) -> np.ndarray:
    """Return the centre of the cross, y and x, as fractions of the sides."""
    dark = 1 - pixels[..., 0].astype(float) / 200
    lines = dark[:, :3].mean(axis=1), dark[:3].mean(axis=0)
    return np.array([(line * (np.arange(len(line)) + 0.5)).sum() / line.sum() / len(line) for line in lines])


@pytest.mark.parametrize(
    ("canvas", "pixels"),
    [((80, 120), (80, 120)), ((81, 120), (160, 240)), ((160, 200), (160, 240)), ((320, 480), (320, 480))],
)
def test_a_jpeg_is_reduced_to_the_smallest_size_that_covers_the_canvas(canvas, pixels):
    decoded, size = decode_image(save(cross(960, 640), "JPEG"), max_pixels=1_000_000, canvas_for=lambda *_: canvas)
    assert decoded.shape == (*pixels, 3)
    assert size == (640, 960)


def test_a_jpeg_less_than_twice_the_canvas_and_what_is_no_jpeg_are_decoded_in_full():
    jpeg, _ = decode_image(save(cross(96, 64), "JPEG"), max_pixels=10_000, canvas_for=lambda *_: (32, 49))
    assert jpeg.shape == (64, 96, 3)
    for format in ("PNG", "WEBP", "TIFF"):
        data = save(cross(96, 64), format)
        assert decode_image(data, max_pixels=10_000, canvas_for=lambda *_: (2, 2))[0].shape == (64, 96, 3)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("part", [2, 4, 8])
@pytest.mark.parametrize("size", [(960, 640), (961, 647), (967, 641)])
def test_a_point_of_a_reduced_jpeg_is_at_the_same_fraction_of_the_sides(size, part, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(cross(*size), "JPEG", quality=95, exif=exif)
    sizes = []

    def canvas(height: int, width: int) -> tuple[int, int]:
        sizes.append((height, width))
        return height // part, width // part

    full = decode(data, max_pixels=1_000_000)
    reduced, size = decode_image(data, max_pixels=1_000_000, canvas_for=canvas)
    # Both the canvas and the reported size are those of the image as shown.
    assert sizes == [full.shape[:2]]
    assert size == full.shape[:2]
    assert reduced.shape[:2] == (full.shape[0] // part, full.shape[1] // part)
    # A tenth of a pixel of the smaller image.
    shifts = np.abs(cross_centre(reduced) - cross_centre(full)) * reduced.shape[:2]
    assert shifts.max() < 0.1


def test_greyscale_and_cmyk_jpegs_may_be_decoded_smaller_too():
    for mode in ("L", "CMYK"):
        data = save(cross(401, 301).convert(mode), "JPEG")
        decoded, _ = decode_image(data, max_pixels=1_000_000, canvas_for=lambda *_: (100, 100))
        assert decoded.shape == (150, 200, 3)
        assert np.abs(decoded[:20, :20].astype(int) - 200).max() < 8


def test_a_truncated_jpeg_is_refused_where_it_is_reduced_too():
    data = save(Image.effect_noise((400, 300), 60), "JPEG")
    with pytest.raises(BadImage):
        decode_image(data[: len(data) // 2], max_pixels=1_000_000, canvas_for=lambda *_: (50, 50))


MAX_PIXELS = 1_000_000


INTACT = {format: corpus.intact(format) for format in corpus.FORMATS}


def status_of(data: bytes) -> int:
    """Return 200, or the status of the error; another exception fails the test."""
    problem = None
    try:
        pixels = decode(data, max_pixels=MAX_PIXELS)
        decode_image(data, max_pixels=MAX_PIXELS, canvas_for=lambda height, width: (-(-height // 4), -(-width // 4)))
    except ServiceError as error:
        problem = error
    if problem is not None:
        assert problem.status in (400, 413, 415)
        assert len(problem.detail) < 300
        return problem.status
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    return 200


def test_every_file_of_the_corpus_is_an_image_or_a_problem():
    statuses = {name: status_of(data) for name, data in corpus.all_files()}
    assert len(statuses) > 1000
    assert statuses["PNG of 400 megapixels"] == 413
    assert statuses["JPEG of ten thousand scans"] == 400
    assert statuses["a PDF around a JPEG"] == 415
    assert statuses["JPEG and a zip"] == 200
    assert statuses["orientation 9 in a loop"] == 200


def test_a_jpeg_of_thousands_of_passes_is_refused_before_it_is_decoded():
    [bomb] = [data for name, data in corpus.bombs() if "scans" in name]
    with pytest.raises(BadImage, match="passes"):
        decode(bomb, max_pixels=1_000_000)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(corpus.FORMATS), st.data())
def test_every_mutation_of_an_image_is_an_image_or_a_problem(format, data):
    body = bytearray(INTACT[format])
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(0, len(body)))
        body[offset : offset + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=30))
    status_of(bytes(body))


BEGINNINGS = sorted({body[:length] for body in INTACT.values() for length in (0, 2, 4, 8, 16, 26, 40)})


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=400))
def test_any_bytes_after_the_beginning_of_an_image_are_an_image_or_a_problem(beginning, noise):
    status_of(beginning + noise)


def test_a_photograph_with_a_video_behind_it_is_decoded():
    photograph = INTACT["JPEG"]
    video = photograph + b"\xff\xda" * 200_000
    assert np.array_equal(decode(video, max_pixels=10**6), decode(photograph, max_pixels=10**6))


def test_no_memory_for_an_encoder_is_reported_as_such(monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("out of memory when writing image file")

    monkeypatch.setattr(process, "_JOBS", {"draw_boxes": fail})
    assert process._do({"op": "draw_boxes"}, [], mmap.mmap(-1, 1)) == ({"failure": "memory"}, [])
