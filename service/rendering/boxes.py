"""Draw detections and proposals on their image, and encode it. Blocking: call it in a thread."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:  # it imports torch
    from model.structures import Detections, ImageArray, Proposals

Colour = tuple[int, int, int]

MEDIA_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG"}
"""The media types that ``encode`` writes, with Pillow's names of their formats."""


def draw_boxes(
    image: ImageArray, boxes: NDArray[np.float32], captions: Sequence[str], categories: Sequence[int]
) -> Image.Image:
    """Return a copy of ``image`` (uint8 [H, W, 3] RGB) with ``boxes`` ([N, 4] xyxy in its pixels), the first on top.

    captions: a line of text for each box, or "" for none. categories: the class or level of each box, which chooses
    its colour.
    """
    drawing = Image.fromarray(image)
    pen = ImageDraw.Draw(drawing)
    line_width, font = _pen_sizes(drawing.size)
    # The best box is drawn last, so that nothing covers it.
    for box, caption, category in reversed(list(zip(boxes.tolist(), captions, categories, strict=True))):
        x1, y1, x2, y2 = box
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour(category), width=line_width)
        if caption:
            _draw_caption(pen, drawing.size, (x1, y1), caption, colour(category), font, line_width)
    return drawing


def draw_detections(image: ImageArray, detections: Detections) -> Image.Image:
    """Return a copy of ``image`` with ``detections``, coloured by class, each box with its label and score."""
    scores = detections.scores.tolist()
    captions = [f"{label} {score:.2f}" for label, score in zip(detections.labels, scores, strict=True)]
    return draw_boxes(image, detections.boxes.numpy(), captions, detections.class_ids.tolist())


def draw_proposals(image: ImageArray, proposals: Proposals) -> Image.Image:
    """Return a copy of ``image`` with ``proposals``, coloured by level; the best ten have level and objectness.

    More captions would hide the image.
    """
    levels = proposals.levels.tolist()
    captions = [f"L{level} {score:.2f}" for level, score in zip(levels, proposals.objectness.tolist(), strict=True)]
    captions[10:] = [""] * len(captions[10:])
    return draw_boxes(image, proposals.boxes.numpy(), captions, levels)


def draw_caption(image: Image.Image, corner: tuple[float, float], caption: str, category: int) -> None:
    """Write ``caption`` on ``image`` at ``corner`` (x, y), on a background in the colour of ``category``."""
    line_width, font = _pen_sizes(image.size)
    _draw_caption(ImageDraw.Draw(image), image.size, corner, caption, colour(category), font, line_width)


def encode(image: Image.Image, media_type: str) -> bytes:
    """Return ``image`` encoded as ``media_type``, a key of ``MEDIA_TYPES``."""
    file = BytesIO()
    image.save(file, MEDIA_TYPES[media_type], **({"quality": 90} if media_type == "image/jpeg" else {}))
    return file.getvalue()


def colour(category: int) -> Colour:
    """Return a bright colour for a class or level; golden-angle steps of hue keep neighbouring numbers distinct."""
    red, green, blue = colorsys.hsv_to_rgb((category * 0.381966) % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _pen_sizes(size: tuple[int, int]) -> tuple[int, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Return the line width and the font that suit an image of ``size`` (width, height)."""
    side = min(size)
    return max(1, round(side / 200)), ImageFont.load_default(size=max(10, round(side / 28)))


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
