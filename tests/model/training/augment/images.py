"""Labelled images whose boxes can be seen in their pixels."""

import numpy as np
import torch

from model.training.augment import LabelledImage

RED = torch.tensor([255, 0, 0], dtype=torch.uint8)


def painted_image(boxes, height=100, width=200, ignore=None) -> LabelledImage:
    """Make a black image with each box painted red."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    pixels = torch.zeros((3, height, width), dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes.astype(int):
        pixels[0, y1:y2, x1:x2] = 255
    ignored = np.zeros(len(boxes), bool) if ignore is None else np.array(ignore)
    return LabelledImage(pixels, boxes, np.arange(1, len(boxes) + 1), ignored)


def red_box(pixels: torch.Tensor) -> list[int]:
    """Return the corners of the box that holds all red pixels."""
    ys, xs = torch.where(pixels[0] > 127)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
