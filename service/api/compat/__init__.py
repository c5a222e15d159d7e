"""The HTTP interfaces of other services: each translates to ``ImageHandler``, and is off unless its setting is on."""

from __future__ import annotations

from collections.abc import Sequence


def integer_box(box: Sequence[float], names: Sequence[str]) -> dict[str, int]:
    """Return ``box``, xyxy in pixels, in whole pixels by ``names``."""
    return {name: round(value) for name, value in zip(names, box, strict=True)}
