"""Change light and colour at random, in one pass over the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# ITU-R BT.601 luma, and the two chroma axes of NTSC's YIQ beside it: a rotation in that plane is a change of hue.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


@dataclass(frozen=True)
class ColourConfig:
    """How much to change.

    brightness, contrast, saturation: the factor is drawn from 1 -+ this. hue: degrees, drawn from -+ this.
    chance: probability of each of the four changes.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.4
    hue: float = 12.0
    chance: float = 0.5


def jitter_colours(pixels: Tensor, config: ColourConfig, rng: np.random.Generator) -> Tensor:
    """Change uint8 [3, h, w] RGB at random; return the same shape and type, the same tensor where no change is drawn.

    All four changes are affine in RGB, so they are multiplied into one matrix and one offset, and values are clamped to
    0..255 once, at the end.
    """
    matrix, offset = np.eye(3), np.zeros(3)
    drawn = rng.random(4) < config.chance
    if not drawn.any():
        return pixels
    if drawn[0]:
        matrix *= rng.uniform(1 - config.brightness, 1 + config.brightness)
    if drawn[1]:
        factor = rng.uniform(1 - config.contrast, 1 + config.contrast)
        # Contrast is relative to the image's mean luma, which a 16th of the pixels estimates well enough.
        mean = pixels[:, ::4, ::4].double().mean(dim=(1, 2)).numpy()
        grey = float(_YIQ[0] @ (matrix @ mean))
        matrix, offset = matrix * factor, offset + (1 - factor) * grey
    if drawn[2]:
        factor = rng.uniform(1 - config.saturation, 1 + config.saturation)
        mix = factor * np.eye(3) + (1 - factor) * _YIQ[0]
        matrix, offset = mix @ matrix, mix @ offset
    if drawn[3]:
        angle = np.deg2rad(rng.uniform(-config.hue, config.hue))
        cos, sin = np.cos(angle), np.sin(angle)
        rotation = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
        matrix, offset = rotation @ matrix, rotation @ offset
    # The cast to uint8 truncates, so a half is added to round.
    flat = torch.addmm(
        torch.tensor(offset + 0.5, dtype=torch.float32)[:, None],
        torch.tensor(matrix, dtype=torch.float32),
        pixels.reshape(3, -1).float(),
    )
    return flat.clamp_(0, 255).to(torch.uint8).reshape(pixels.shape)
