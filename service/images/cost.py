"""What decoding and drawing cost: peak memory and processor time, by format and mode."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SECONDS = 4.0
"""An image that is estimated to take more processor time to decode is ``TooLarge``."""


@dataclass(frozen=True)
class DecodeCost:
    """An upper estimate of what a job needs.

    bytes: peak memory beyond that of an idle process, the pixels that are returned included. seconds: processor time.
    """

    bytes: int
    seconds: float


def draw_cost(height: int, width: int, media_type: str) -> DecodeCost:
    """Return what drawing on uint8 [height, width, 3] and encoding as ``media_type`` need."""
    pixels = height * width
    return DecodeCost(pixels * 14, pixels * (4e-8 if media_type == "image/jpeg" else 1.5e-7))
