"""The part of ``model.detector.Detector`` that the service uses; tests serve detectors of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from model.structures import Detections, DetectOptions, DetectorInfo, ImageArray


class DetectorLike(Protocol):
    """A detector as the service sees it. ``info`` and ``canvas_for`` may be called from any thread."""

    @property
    def info(self) -> DetectorInfo: ...
    def canvas_for(self, height: int, width: int) -> tuple[int, int]: ...
    def warm_up(self) -> None: ...
    def detect(self, images: Sequence[ImageArray], options: Sequence[DetectOptions]) -> list[Detections]: ...
