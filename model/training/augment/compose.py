"""Make a training image: one sample changed at random, a mosaic of four, or an image without objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from model.training.augment.colour import jitter_colours
from model.training.augment.config import AugmentConfig
from model.training.augment.geometry import flip_horizontally, resize_and_crop
from model.training.augment.labelled_image import LabelledImage
from model.training.augment.negatives import make_negative


def augment_image(
    image: LabelledImage, canvas: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> LabelledImage:
    """Scale and crop to the canvas (H, W), flip and recolour; the result may be smaller than the canvas."""
    resized = resize_and_crop(image, canvas, config, rng)
    if rng.random() < config.flip:
        resized = flip_horizontally(resized)
    return replace(resized, pixels=jitter_colours(resized.pixels, config.colour, rng))


def compose_mosaic(
    images: Sequence[LabelledImage], canvas: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> LabelledImage:
    """Put four images around a random point of the canvas (H, W), each covering its quarter, and recolour."""
    height, width = canvas
    middle_y, middle_x = (round(side * rng.uniform(0.35, 0.65)) for side in canvas)
    pixels = torch.empty((3, height, width), dtype=torch.uint8)
    labels = []
    for i, image in enumerate(images[:4]):
        top, bottom = (0, middle_y) if i < 2 else (middle_y, height)
        left, right = (0, middle_x) if i % 2 == 0 else (middle_x, width)
        quarter = resize_and_crop(image, (bottom - top, right - left), config, rng, cover=True)
        if rng.random() < config.flip:
            quarter = flip_horizontally(quarter)
        pixels[:, top:bottom, left:right] = quarter.pixels
        boxes = quarter.boxes + np.array([left, top, left, top], np.float32)
        labels.append((boxes, quarter.class_ids, quarter.ignore))
    boxes, class_ids, ignore = (np.concatenate(column) for column in zip(*labels, strict=True))
    return LabelledImage(jitter_colours(pixels, config.colour, rng), boxes, class_ids, ignore)


def make_negative_image(image: LabelledImage, canvas: tuple[int, int], rng: np.random.Generator) -> LabelledImage:
    """Make an image without objects, of the canvas's size (H, W), from a photograph with labels."""
    pixels = make_negative(image.pixels, image.boxes, canvas, rng)
    return LabelledImage(pixels, image.boxes[:0], image.class_ids[:0], image.ignore[:0])
