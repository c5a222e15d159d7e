"""Boxes as tensors [..., 4] of x1, y1, x2, y2: area, overlap, clipping, and offsets (arXiv 1506.01497, equation 2).

All functions are pure and work in whichever frame their boxes are in. Boxes must be float32: bfloat16 has 8 significant
bits, and would move a corner near the right edge of a 1344 pixels wide canvas by up to 3 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import MAX_LOG_SCALE
from model.transfer import constant

Weights = tuple[float, float, float, float]
_NO_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)


def area(boxes: Tensor) -> Tensor:
    """Return the area [...] of boxes [..., 4], in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Return the overlapping area [G, N] of every box of ``a`` [G, 4] with every box of ``b`` [N, 4]."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union [G, N] of every box of ``a`` [G, 4] with every box of ``b`` [N, 4].

    It is 0 for two boxes without area.
    """
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return shared / union.clamp(min=torch.finfo(shared.dtype).tiny)


def clip(boxes: Tensor, height: Tensor | float, width: Tensor | float) -> Tensor:
    """Clip boxes [..., 4] to ``[0, width] x [0, height]``; bounds are numbers, or tensors that broadcast to [...]."""
    right, bottom = (torch.as_tensor(side, dtype=boxes.dtype, device=boxes.device) for side in (width, height))
    return torch.minimum(boxes.clamp(min=0), torch.stack((right, bottom, right, bottom), dim=-1))


def encode(boxes: Tensor, anchors: Tensor, weights: Weights = _NO_WEIGHTS) -> Tensor:
    """Return the offsets (tx, ty, tw, th) [..., 4] from ``anchors`` to ``boxes`` (arXiv 1506.01497, equation 2).

    boxes and anchors: [..., 4]. weights: multipliers of the four. ``decode`` is the inverse.
    """
    widths, heights = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    centre_x, centre_y = anchors[..., 0] + 0.5 * widths, anchors[..., 1] + 0.5 * heights
    to_widths, to_heights = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    to_x, to_y = boxes[..., 0] + 0.5 * to_widths, boxes[..., 1] + 0.5 * to_heights
    wx, wy, ww, wh = weights
    return torch.stack(
        (
            wx * (to_x - centre_x) / widths,
            wy * (to_y - centre_y) / heights,
            ww * torch.log(to_widths / widths),
            wh * torch.log(to_heights / heights),
        ),
        dim=-1,
    )


def decode(deltas: Tensor, anchors: Tensor, weights: Weights = _NO_WEIGHTS) -> Tensor:
    """Return boxes [..., 4] from offsets [..., 4] and the anchors or proposals [..., 4] that they move; not clipped.

    tw and th are clamped to at most log(1000/16), so that exp does not overflow, and not from below (torchvision's
    _utils.py): clamping small boxes as well would change what its checkpoints answer.
    """
    if weights != _NO_WEIGHTS:
        deltas = deltas / constant(weights, deltas.device)
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + 0.5 * sides
    centres = deltas[..., :2] * sides + centres
    half = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * sides)
    return torch.cat((centres - half, centres + half), dim=-1)


def rescale(boxes: Tensor, from_size: Tensor, to_size: Tensor) -> Tensor:
    """Rescale boxes [..., 4] from a frame of ``from_size`` to one of ``to_size``, each (height, width).

    Each axis has its own ratio: resized sides are rounded to whole pixels, which makes the two ratios differ.
    """
    height, width = (to_size.to(torch.float32) / from_size.to(torch.float32)).unbind(-1)
    return boxes * torch.stack((width, height, width, height), dim=-1)
