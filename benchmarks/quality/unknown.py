"""Measure false detections on images without any of the twenty classes.

    python -m benchmarks.quality.unknown --weights lite-voc20

Six kinds are drawn here, the same for the same seed; the photographs are scikit-image's that are CC0 or in the public
domain, show none of the classes and come with the package. Every detection above the threshold is a false one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from model.detector import DetectOptions, Detector

Pixels = NDArray[np.uint8]  # [H, W, 3] RGB
Generator = np.random.Generator

EACH = 24  # images of a kind that is drawn
SIZES = ((384, 288), (288, 384), (640, 480), (500, 375), (512, 512), (800, 450))  # width, height
# Left out for what they show: astronaut, camera (people), chelsea (a cat), horse, motorcycle_left and _right; for what
# they do not say of their licence: coins, ihc, moon, page.
PHOTOGRAPHS = (
    "brick.png",
    "cell.png",
    "clock_motion.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "microaneurysms.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
_COMMON = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were her all she there would their we him been has when who will more no if out so said what up its about "
    "into than them can only other new some could time these two may then do first any my now such like our over man "
    "me even most made after also did many before must through back years where much your way well down should because"
)
_WORDS = _COMMON.split()


@dataclass(frozen=True)
class Unknown:
    """An image without any of the classes. name: its kind and number, or its file."""

    kind: str
    name: str
    pixels: Pixels


def blank(rng: Generator, width: int, height: int) -> Pixels:
    """Draw one colour; one of three images is black, white or grey."""
    level = int(rng.choice([0, 128, 255]))
    colour = (level,) * 3 if rng.random() < 1 / 3 else tuple(rng.integers(0, 256, 3))
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def gradient(rng: Generator, width: int, height: int) -> Pixels:
    """Draw a gradient between two colours, along a line or out from a point."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * math.pi)
        ramp = x * math.cos(angle) + y * math.sin(angle)
    else:
        ramp = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
    return _coloured(ramp, rng)


def noise(rng: Generator, width: int, height: int) -> Pixels:
    """Draw noise: grey or coloured, uniform or normal; or salt and pepper."""
    channels = int(rng.choice([1, 3]))
    shape = (height, width, channels)
    kind = rng.integers(3)
    if kind == 0:
        values = rng.integers(0, 256, shape).astype(np.float64)
    elif kind == 1:
        values = rng.normal(rng.uniform(60, 190), rng.uniform(10, 60), shape)
    else:
        values = np.full(shape, 128.0)
        marks = rng.random(shape)
        values[marks < 0.05], values[marks > 0.95] = 0, 255
    return np.broadcast_to(values.clip(0, 255), (height, width, 3)).astype(np.uint8)


def texture(rng: Generator, width: int, height: int) -> Pixels:
    """Draw stripes, a checkerboard, Voronoi cells, or smooth noise of several octaves."""
    return (stripes, checkers, cells, clouds)[rng.integers(4)](rng, width, height)


def stripes(rng: Generator, width: int, height: int) -> Pixels:
    """Draw parallel stripes in any direction, with hard or soft edges."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    angle = rng.uniform(0, math.pi)
    wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / rng.uniform(6, 60))
    return _coloured(np.sign(wave) if rng.random() < 0.5 else wave, rng)


def checkers(rng: Generator, width: int, height: int) -> Pixels:
    """Draw squares of two colours, turned by any angle."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    angle, side = rng.uniform(0, math.pi / 2), rng.uniform(8, 60)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return _coloured((np.floor(u / side) + np.floor(v / side)) % 2, rng)


def cells(rng: Generator, width: int, height: int) -> Pixels:
    """Draw each pixel in the colour of the nearest of some points."""
    count = int(rng.integers(10, 60))
    points, colours = rng.uniform((0, 0), (width, height), (count, 2)), rng.integers(0, 256, (count, 3))
    y, x = np.mgrid[:height, :width]
    nearest = np.zeros((height, width), np.int64)
    best = np.full((height, width), np.inf)
    for number, (px, py) in enumerate(points):
        distance = (x - px) ** 2 + (y - py) ** 2
        nearest[distance < best] = number
        best = np.minimum(best, distance)
    return colours[nearest].astype(np.uint8)


def clouds(rng: Generator, width: int, height: int) -> Pixels:
    """Draw octaves of value noise, each half as strong and twice as fine."""
    total = np.zeros((height, width))
    for octave in range(6):
        columns = 2 ** (octave + 2)
        rows = max(2, round(columns * height / width))
        coarse = Image.fromarray(rng.random((rows, columns)).astype(np.float32))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 2**octave
    return _coloured(total, rng)


def drawing(rng: Generator, width: int, height: int) -> Pixels:
    """Draw ellipses, rectangles, polygons and lines, filled or not, on one colour."""
    image = Image.new("RGB", (width, height), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 13))):
        xs, ys = rng.integers(0, width, 2), rng.integers(0, height, 2)
        box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
        colour, thick = tuple(rng.integers(0, 256, 3).tolist()), int(rng.integers(1, 7))
        inside = colour if rng.random() < 0.6 else None
        shape = rng.integers(4)
        if shape == 0:
            pen.ellipse(box, fill=inside, outline=colour, width=thick)
        elif shape == 1:
            pen.rectangle(box, fill=inside, outline=colour, width=thick)
        elif shape == 2:
            count = int(rng.integers(3, 7))
            corners = zip(rng.integers(0, width, count).tolist(), rng.integers(0, height, count).tolist(), strict=True)
            pen.polygon(list(corners), fill=inside, outline=colour, width=thick)
        else:
            pen.line([int(xs[0]), int(ys[0]), int(xs[1]), int(ys[1])], fill=colour, width=thick)
    return np.asarray(image).copy()


def text(rng: Generator, width: int, height: int) -> Pixels:
    """Draw a page of words in Pillow's own typeface, with a heading, in one column or two."""
    dark, light = int(rng.integers(0, 60)), int(rng.integers(200, 256))
    ink, paper = (dark, light) if rng.random() < 0.85 else (light, dark)
    image = Image.new("L", (width, height), paper)
    pen = ImageDraw.Draw(image)
    size = int(rng.integers(10, 25))
    font, heading = ImageFont.load_default(size), ImageFont.load_default(round(size * 1.8))
    margin, columns = width // 16, int(rng.integers(1, 3))
    pen.text((margin, margin), " ".join(rng.choice(_WORDS, 3)).capitalize(), font=heading, fill=ink)
    column = (width - margin) // columns - margin
    for number in range(columns):
        left, top = margin + number * (column + margin), margin + size * 3
        while top + size < height - margin:
            line = str(rng.choice(_WORDS))
            while pen.textlength(longer := f"{line} {rng.choice(_WORDS)}", font=font) < column:
                line = longer
            if rng.random() < 0.9:  # or the gap between two paragraphs
                pen.text((left, top), line, font=font, fill=ink)
            top += round(size * 1.4)
    return np.repeat(np.asarray(image)[:, :, None], 3, axis=2)


KINDS: dict[str, Callable[[Generator, int, int], Pixels]] = {
    "blank": blank,
    "gradient": gradient,
    "noise": noise,
    "texture": texture,
    "drawing": drawing,
    "text": text,
}


def drawn(seed: int = 0, each: int = EACH) -> list[Unknown]:
    """Return ``each`` images of every kind; their sizes repeat."""
    images = []
    for place, (kind, make) in enumerate(KINDS.items()):
        for number in range(each):
            rng = np.random.default_rng((seed, place, number))  # one image more changes no other
            images.append(Unknown(kind, f"{kind} {number}", make(rng, *SIZES[number % len(SIZES)])))
    return images


def photographs() -> list[Unknown]:
    """Return scikit-image's photographs, from the package itself."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [
        Unknown("photograph", Path(name).stem, np.array(Image.open(folder / name).convert("RGB")))
        for name in PHOTOGRAPHS
    ]


def measure(detector: Detector, images: list[Unknown], threshold: float | None = None) -> dict[str, Any]:
    """Count false detections by kind above ``threshold`` (None: the detector's default), and list the ten highest.

    share: of images with at least one. per_image: detections over images. highest: name, class and score, from 0.05 up,
    so that there is something to see below the threshold too.
    """
    limit = detector.info.score_threshold if threshold is None else threshold
    counts: dict[str, list[int]] = {}
    scored: list[tuple[float, str, str]] = []
    for image in images:
        (detections,) = detector.detect([image.pixels], DetectOptions(score_threshold=min(0.05, limit)))
        counts.setdefault(image.kind, []).append(int((detections.scores > limit).sum()))
        pairs = zip(detections.scores.tolist(), detections.labels, strict=True)
        scored += [(score, image.name, label) for score, label in pairs]
    every = [count for kind in counts.values() for count in kind]
    scored.sort(reverse=True)
    return {
        "weights": detector.info.name,
        "sha256": detector.info.sha256,
        "precision": detector.info.precision,
        "threshold": limit,
        "kinds": {kind: _summary(numbers) for kind, numbers in counts.items()} | {"all": _summary(every)},
        "highest": [{"image": name, "class": label, "score": round(score, 4)} for score, name, label in scored[:10]],
    }


def _summary(numbers: list[int]) -> dict[str, Any]:
    with_any = sum(number > 0 for number in numbers)
    return {
        "images": len(numbers),
        "detections": sum(numbers),
        "share": with_any / len(numbers),
        "per_image": sum(numbers) / len(numbers),
    }


def _coloured(values: NDArray[np.float64], rng: Generator) -> Pixels:
    """Return values [H, W] as shades between two colours."""
    low, high = values.min(), values.max()
    part = ((values - low) / max(high - low, 1e-9))[:, :, None]
    first, second = rng.integers(0, 256, (2, 3))
    return (first * (1 - part) + second * part).round().astype(np.uint8)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threshold", type=float, help="instead of the detector's default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    detector = Detector.from_checkpoint(options.weights, precision=options.precision)
    print(json.dumps(measure(detector, drawn(options.seed) + photographs(), options.threshold), indent=1))


if __name__ == "__main__":
    main()
