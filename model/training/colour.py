"""Changes of light and colour, in one pass over the pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# ITU-R BT.601 luma, and the two chroma axes of NTSC's YIQ beside it: a turn in that plane is a change of hue.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


@dataclass(frozen=True)
class ColourConfig:
    """How much to change.

    brightness, contrast, saturation: the factor is drawn from 1 -+ this. hue: a turn in degrees, drawn from -+ this.
    chance: probability of each of the four.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.4
    hue: float = 12.0
    chance: float = 0.5


def recolour(pixels: Tensor, config: ColourConfig, rng: np.random.Generator) -> Tensor:
    """Change uint8 [3, h, w] RGB at random; the same shape and type, and the same tensor where nothing was drawn.

    All four changes are affine in RGB, so they are multiplied into one matrix and one offset, and values are cut to
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
        # Contrast turns about the picture's mean luma; a 16th of the pixels tells it well enough.
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
        turn = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
        matrix, offset = turn @ matrix, turn @ offset
    # The cast to uint8 cuts fractions off, so a half is added for it to round.
    flat = torch.addmm(
        torch.tensor(offset + 0.5, dtype=torch.float32)[:, None],
        torch.tensor(matrix, dtype=torch.float32),
        pixels.reshape(3, -1).float(),
    )
    return flat.clamp_(0, 255).to(torch.uint8).reshape(pixels.shape)
