"""Faster R-CNN in PyTorch: arrays of pixels in, boxes out. Knows nothing of HTTP.

``Detector`` is the facade; ``model.structures`` describes what it takes and returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.detector import Detector
    from model.structures import Detections, DetectOptions, DetectorInfo

__all__ = ["DetectOptions", "Detections", "Detector", "DetectorInfo"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the command line checks its settings before it spends seconds on importing torch.
    if name in __all__:
        from model import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
