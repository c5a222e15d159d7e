"""Settings of the augmentation."""

from __future__ import annotations

from dataclasses import dataclass, field

from model.training.augment.colour import ColourConfig


@dataclass(frozen=True)
class AugmentConfig:
    """How much to change images; each chance is a probability.

    flip: chance of a left-right flip.
    scale: smallest and largest size, log-uniform, relative to the size at which the image just fits its canvas.
    stretch: the width is further multiplied by up to this either way, the height divided; 1 keeps the aspect ratio.
    colour: changes of light and colour.
    mosaic: chance of a mosaic of four images.
    negative: chance of an image without objects instead (``negatives.py``).
    min_visible: a box whose centre is cropped away stays if at least this share of it is visible.
    min_side: canvas pixels; a box with a smaller visible side is ignored, neither object nor background.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (0.7, 1.4)
    stretch: float = 1.0
    colour: ColourConfig = field(default_factory=ColourConfig)
    mosaic: float = 0.0
    negative: float = 0.0
    min_visible: float = 0.3
    min_side: float = 2.0


# Only fits the image onto its canvas.
PLAIN = AugmentConfig(flip=0.0, scale=(1.0, 1.0), colour=ColourConfig(chance=0.0))
