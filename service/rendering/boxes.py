"""Boxes drawn on the picture they were found in. Blocking work for a thread."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model.structures import Detections, ImageArray, Proposals

Colour = tuple[int, int, int]

MEDIA_TYPES = {"image/jpeg": "JPEG", "image/png": "PNG"}


def wanted_picture(accept: str) -> str | None:
    """The picture type that an ``Accept`` header prefers over JSON, or None; JSON is what anything else gets."""
    best, best_quality = None, 0.0
    for entry in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        if kind == "image/*":
            kind = "image/jpeg"
        if quality > best_quality and kind in (*MEDIA_TYPES, "application/json", "*/*"):
            best, best_quality = kind, quality
    return best if best in MEDIA_TYPES else None


def draw(picture: ImageArray, boxes: NDArray[np.float32], captions: Sequence[str], kinds: Sequence[int]) -> Image.Image:
    """A copy of ``picture`` with ``boxes`` ([N, 4] xyxy, its pixels) on it, the last one lowest.

    captions: a line of text each, or "" for none. kinds: a number each (class, level) that chooses the colour.
    """
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    line, font = _pen_sizes(canvas.size)
    # The best box is drawn last, so that nothing covers it.
    for box, caption, kind in reversed(list(zip(boxes.tolist(), captions, kinds, strict=True))):
        x1, y1, x2, y2 = box
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour(kind), width=line)
        if caption:
            _label(pen, canvas.size, (x1, y1), caption, colour(kind), font, line)
    return canvas


def draw_detections(picture: ImageArray, found: Detections) -> Image.Image:
    """A copy of ``picture`` with ``found`` on it, coloured by class, each box with its label and score."""
    scores = found.scores.tolist()
    captions = [f"{label} {score:.2f}" for label, score in zip(found.labels, scores, strict=True)]
    return draw(picture, found.boxes.numpy(), captions, found.class_ids.tolist())


def draw_proposals(picture: ImageArray, proposals: Proposals) -> Image.Image:
    """A copy of ``picture`` with ``proposals`` on it, coloured by level; the best ten say their level and objectness.

    A hundred captions would hide the picture.
    """
    levels = proposals.levels.tolist()
    said = [f"L{level} {likely:.2f}" for level, likely in zip(levels, proposals.objectness.tolist(), strict=True)]
    captions = said[:10] + [""] * len(said[10:])
    return draw(picture, proposals.boxes.numpy(), captions, levels)


def label(image: Image.Image, corner: tuple[float, float], caption: str, kind: int) -> None:
    """Write ``caption`` on ``image`` at ``corner`` (x, y), on a plate of the colour of ``kind``."""
    line, font = _pen_sizes(image.size)
    _label(ImageDraw.Draw(image), image.size, corner, caption, colour(kind), font, line)


def encode(image: Image.Image, media_type: str) -> bytes:
    """``image`` as a file of ``media_type``, a key of ``MEDIA_TYPES``."""
    file = BytesIO()
    image.save(file, MEDIA_TYPES[media_type], **({"quality": 90} if media_type == "image/jpeg" else {}))
    return file.getvalue()


def colour(kind: int) -> Colour:
    """A bright colour for a class or level; golden-angle steps keep neighbours apart however many there are."""
    red, green, blue = colorsys.hsv_to_rgb((kind * 0.381966) % 1.0, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _pen_sizes(size: tuple[int, int]) -> tuple[int, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Width of lines and the font that suit a picture of this size."""
    side = min(size)
    return max(1, round(side / 200)), ImageFont.load_default(size=max(10, round(side / 28)))


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    caption: str,
    fill: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    margin: int,
) -> None:
    """A caption on a plate above the corner, or below it where there is no room; always inside the picture."""
    left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0.0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else min(corner[1], max(0.0, size[1] - height))
    pen.rectangle((x, y, x + width, y + height), fill=fill)
    luminance = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2]  # ITU-R BT.601
    pen.text((x + margin - left, y + margin - top), caption, font=font, fill="black" if luminance > 128 else "white")
