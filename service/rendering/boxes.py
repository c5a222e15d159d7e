"""Draw boxes with captions on an image, and encode it. Blocking: call it in a process that can be killed."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.errors import TooLarge

if TYPE_CHECKING:  # it imports torch
    from model.structures import Detections, ImageArray

Colour = tuple[int, int, int]

MEDIA_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG"}
"""The media types that ``encode`` writes, with Pillow's names of their formats."""

# A drawing sets at most so many pixels, which takes a second or two: thousands of boxes on a large image would take
# many. A pixel of a caption takes as long as eight of an outline.
MAX_DRAWN_PIXELS = 2**30
_CAPTION_WEIGHT = 8
_ENCODING: dict[str, dict[str, Any]] = {
    "image/jpeg": {"quality": 90},
    "image/png": {"compress_level": 1},  # half of the default's time for a file a tenth larger
}
MAX_JPEG_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION


def draw_boxes(
    image: ImageArray, boxes: NDArray[np.float32], captions: Sequence[str], categories: Sequence[int]
) -> Image.Image:
    """Return a copy of ``image`` (uint8 [H, W, 3] RGB) with ``boxes`` ([N, 4] xyxy in its pixels), the first on top.

    captions: a line of text for each box, or "" for none. categories: the class or level of each box, which chooses
    its colour. Boxes after those that set ``MAX_DRAWN_PIXELS`` pixels in all are left out.
    """
    drawing = Image.fromarray(image)
    pen = ImageDraw.Draw(drawing)
    line_width, font = _pen_sizes(drawing.size)
    count = _count_drawn(boxes, captions, line_width, font)
    # The best box is drawn last, so that nothing covers it.
    for box, caption, category in reversed(list(zip(boxes.tolist(), captions, categories, strict=True))[:count]):
        x1, y1, x2, y2 = box
        _draw_outline(drawing, (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), colour(category), line_width)
        if caption:
            _draw_caption(pen, drawing.size, (x1, y1), caption, colour(category), font, line_width)
    return drawing


def detection_captions(labels: Sequence[str], scores: Sequence[float]) -> list[str]:
    """Return the caption of each detection: its label and score."""
    return [f"{label} {score:.2f}" for label, score in zip(labels, scores, strict=True)]


def proposal_captions(levels: Sequence[int], objectness: Sequence[float]) -> list[str]:
    """Return the caption of each proposal, by falling objectness: of the best ten level and objectness, else "".

    More captions would hide the image.
    """
    captions = [f"L{level} {score:.2f}" for level, score in zip(levels, objectness, strict=True)]
    return captions[:10] + [""] * len(captions[10:])


def draw_detections(image: ImageArray, detections: Detections) -> Image.Image:
    """Return a copy of ``image`` with ``detections``, coloured by class, each box with its label and score."""
    captions = detection_captions(detections.labels, detections.scores.tolist())
    return draw_boxes(image, detections.boxes.numpy(), captions, detections.class_ids.tolist())


def draw_caption(image: Image.Image, corner: tuple[float, float], caption: str, category: int) -> None:
    """Write ``caption`` on ``image`` at ``corner`` (x, y), on a background in the colour of ``category``."""
    line_width, font = _pen_sizes(image.size)
    _draw_caption(ImageDraw.Draw(image), image.size, corner, caption, colour(category), font, line_width)


def encode(image: Image.Image, media_type: str) -> bytes:
    """Return ``image`` encoded as ``media_type``, a key of ``MEDIA_TYPES``.

    Raises ``TooLarge`` where a side is longer than a JPEG's may be.
    """
    if media_type == "image/jpeg" and max(image.size) > MAX_JPEG_SIDE:
        raise TooLarge(
            f"The drawing is {image.width} x {image.height} pixels, and a JPEG has at most {MAX_JPEG_SIDE} on a side; "
            "ask for image/png."
        )
    file = BytesIO()
    image.save(file, MEDIA_TYPES[media_type], **_ENCODING[media_type])
    return file.getvalue()


def colour(category: int) -> Colour:
    """Return a bright colour for a class or level; golden-angle steps of hue keep neighbouring numbers distinct."""
    red, green, blue = colorsys.hsv_to_rgb((category * 0.381966) % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _pen_sizes(size: tuple[int, int]) -> tuple[int, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Return the line width and the font that suit an image of ``size`` (width, height)."""
    side = min(size)
    return max(1, round(side / 200)), ImageFont.load_default(size=max(10, round(side / 28)))


def _count_drawn(
    boxes: NDArray[np.float32],
    captions: Sequence[str],
    line_width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> int:
    """Return how many of the boxes, from the first, set ``MAX_DRAWN_PIXELS`` pixels in all."""
    corners = boxes.astype(np.float64)
    outlines = 2.0 * line_width * (corners[:, 2:] - corners[:, :2]).clip(0).sum(axis=1)
    letter = font.getbbox("M")  # as wide as any
    areas = _CAPTION_WEIGHT * (letter[2] + 2 * line_width) * (letter[3] + 2 * line_width)
    lengths = np.fromiter(map(len, captions), np.float64, len(captions))
    return int(np.searchsorted(np.cumsum(outlines + areas * lengths), MAX_DRAWN_PIXELS, side="right"))


def _draw_outline(drawing: Image.Image, box: tuple[float, float, float, float], ink: Colour, line_width: int) -> None:
    """Draw the outline of a box, of ``line_width`` pixels inside of it, as four filled rectangles.

    Pillow's outline draws as many lines for each side, which is slow, above all for those down the image.
    """
    x1, y1, x2, y2 = (int(value) for value in box)
    line_width = min(line_width, x2 - x1 + 1, y2 - y1 + 1)
    drawing.paste(ink, (x1, y1, x2 + 1, y1 + line_width))
    drawing.paste(ink, (x1, y2 - line_width + 1, x2 + 1, y2 + 1))
    drawing.paste(ink, (x1, y1, x1 + line_width, y2 + 1))
    drawing.paste(ink, (x2 - line_width + 1, y1, x2 + 1, y2 + 1))


def _draw_caption(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    caption: str,
    fill: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    margin: int,
) -> None:
    """Write a caption on a filled background above ``corner``, or below it for lack of space.

    All of it is in the image where ``corner`` is.
    """
    left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0.0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else min(corner[1], max(0.0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=fill)
    luminance = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]  # ITU-R BT.601
    pen.text((x + margin - left, y + margin - top), caption, font=font, fill="black" if luminance > 128 else "white")
