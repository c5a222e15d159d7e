"""Bytes of a stranger's picture -> RGB, within limits.

The kind of picture is read from its first bytes, never from a name or a header, and Pillow is offered that one format
only. The size is checked from the header before a pixel is decoded. Everything here is blocking work for a thread.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import BadImage, BadRequest, ServiceError, TooLarge, UnsupportedImage

Picture = NDArray[np.uint8]

SUPPORTED = "JPEG, PNG, WebP, BMP, TIFF or GIF"
# A progressive JPEG stores each pixel in some ten passes, and is decoded in as many. A pass may be a few bytes long: in
# a hostile file there are thousands, and each takes as long as a whole picture.
PASSES = 16
_ORIENTATION = 0x0112  # EXIF 2.32, tag 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)  # the orientations that exchange height and width


@dataclass(frozen=True)
class Decoded:
    """A picture as shown, EXIF orientation applied: ``pixels`` show all of it, ``height`` and ``width`` are its own.

    The pixels may be as few as an eighth of those in a row or column, where that was allowed.
    """

    pixels: Picture
    height: int
    width: int


def prepare_pillow() -> None:
    """Put our pixel limit in place of Pillow's process-wide one, and keep its remarks on files out of stderr.

    Pillow warns above its own limit and refuses above twice that; ours is a setting and is always checked here.
    """
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes, *, max_pixels: int) -> Picture:
    """The picture in ``data`` as uint8 [H, W, 3], RGB, in full; raises as ``read`` does."""
    return read(data, max_pixels=max_pixels).pixels


def read(data: bytes, *, max_pixels: int, canvas: Callable[[int, int], tuple[int, int]] | None = None) -> Decoded:
    """The picture in ``data``, RGB, as shown: EXIF orientation applied, alpha over white.

    16-bit grey is scaled to 8; greyscale, palette and CMYK are converted; of an animation, the first frame.
    canvas: tells (height, width) of the canvas for a picture of that height and width. Where it is at most half the
    picture, a JPEG is decoded at a half, a quarter or an eighth, never below the canvas: most of the work is not done.
    None: in full. Raises ``BadRequest`` (no bytes), ``UnsupportedImage``, ``TooLarge`` (more than ``max_pixels``),
    ``BadImage``.
    """
    if not data:
        raise BadRequest("The body is empty; send the picture's bytes (curl --data-binary @picture.jpg).")
    kind = sniff(data)
    if kind is None:
        raise UnsupportedImage(f"This is not a picture that the service can read; send {SUPPORTED}.")
    try:
        return _read(data, kind, max_pixels, canvas)
    except ServiceError:
        raise
    except MemoryError:
        raise TooLarge("There is no memory left to decode this picture; send a smaller one.") from None
    except (
        Exception
    ) as error:  # Pillow meets hostile bytes with a dozen kinds of exception; all mean the same to a client
        raise BadImage(
            f"The bytes begin like a {kind} picture but cannot be decoded ({_reason(error)}); "
            "send the whole file, undamaged."
        ) from None


def sniff(data: bytes) -> str | None:
    """Pillow's name of the format that ``data`` begins like, or None."""
    head = data[:16]
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith((b"II*\x00", b"MM\x00*")):
        return "TIFF"
    # "BM" alone begins many an English text; a bitmap's file header goes on with two reserved 16-bit zeros.
    if head.startswith(b"BM") and head[6:10] == b"\x00\x00\x00\x00":
        return "BMP"
    return None


def _read(data: bytes, kind: str, max_pixels: int, canvas: Callable[[int, int], tuple[int, int]] | None) -> Decoded:
    with Image.open(BytesIO(data), formats=[kind]) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise BadImage(f"The picture is {width} x {height} pixels; it must have at least one.")
        if width * height > max_pixels:
            raise TooLarge(
                f"The picture is {width} x {height} pixels, over the limit of {max_pixels} in all; send a smaller one."
            )
        if kind == "JPEG" and _passes(data) * width * height > PASSES * max_pixels:
            raise BadImage("The picture is stored in more passes than any program writes; save it again.")
        shown: Image.Image = image
        if kind == "JPEG" and canvas is not None:
            shown = _load_reduced(image, canvas)
        image.load()
        orientation = _orientation(image)
        if orientation in _UPRIGHT:
            shown = shown.transpose(_UPRIGHT[orientation])
        if orientation in _TURNED:
            width, height = height, width
        return Decoded(_to_rgb(shown), height, width)


def _load_reduced(image: Image.Image, canvas: Callable[[int, int], tuple[int, int]]) -> Image.Image:
    """Load a JPEG (ITU T.81) by inverting only the low frequencies of each 8 x 8 block, if the canvas allows it.

    The last row and column of blocks may stick out of the picture. They do so by less than a pixel of the smaller one,
    but that pixel is part picture, part filling: what remains is cut from the picture's true extent, so that a place in
    it is where it was.
    """
    width, height = image.size
    turned = _orientation(image) in _TURNED
    rows, columns = canvas(*((width, height) if turned else (height, width)))
    if turned:
        rows, columns = columns, rows
    drafted = image.draft(None, (columns, rows)) if min(width // columns, height // rows) >= 2 else None
    image.load()
    if drafted is None:
        return image
    _, extent = drafted
    whole = int(extent[2]), int(extent[3])
    if image.size == whole:
        return image
    return image.resize(whole, Image.Resampling.BILINEAR, box=extent)


def _passes(data: bytes) -> int:
    """Scans of a JPEG, some too many where its metadata hold a thumbnail; in the picture's own data the bytes of a
    scan's header cannot occur otherwise (ITU T.81, B.1.1.5).
    """
    return data.count(b"\xff\xda")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata on a picture whose pixels are whole: show it as stored
        return 1


def _to_rgb(image: Image.Image) -> Picture:
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        return _grey((deep * 255 + 32767) // 65535)
    if image.mode in ("I", "F"):
        return _grey(_stretch(np.asarray(image, dtype=np.float64)))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(paper, layer)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # convert() would copy an RGB picture


def _stretch(values: NDArray[np.float64]) -> NDArray[Any]:
    """32-bit samples have no agreed white, so the darkest becomes 0 and the brightest 255."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if high <= low:
        return np.zeros_like(values)
    stretched: NDArray[np.float64] = np.rint((values - low) * (255.0 / (high - low)))
    return stretched


def _grey(values: NDArray[Any]) -> Picture:
    single: Picture = values.astype(np.uint8)
    return np.repeat(single[:, :, None], 3, axis=2)


def _reason(error: Exception) -> str:
    """Pillow's own words in one short line, without addresses of objects."""
    words = str(error).split("<", 1)[0].strip().rstrip(".:")
    return words[:120] if words and isinstance(error, OSError | ValueError | SyntaxError) else "damaged data"
