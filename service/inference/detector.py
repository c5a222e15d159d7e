"""The detector that the settings name: how it is loaded, and the interface of it that the service uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from model.structures import Detections, DetectOptions, DetectorInfo, ImageArray
from service.inference.threads import available_cores
from service.settings import Settings


class DetectorLike(Protocol):
    """The interface of ``model.detector.Detector`` that the service uses; tests serve detectors of their own.

    ``info`` and ``canvas_for`` may be called from any thread.
    """

    @property
    def info(self) -> DetectorInfo: ...
    def canvas_for(self, height: int, width: int) -> tuple[int, int]: ...
    def warm_up(self) -> None: ...
    def detect(self, images: Sequence[ImageArray], options: Sequence[DetectOptions]) -> list[Detections]: ...


def resolve_devices(setting: str) -> tuple[str, ...]:
    """Return the devices that a setting means, ``cpu`` or ``cuda:N``: all GPUs for ``cuda``, and for ``auto`` if any.

    Raises ``DeviceError`` where one cannot be used.
    """
    if setting == "cpu":  # without importing torch
        return (setting,)
    from model.detector import choose_devices

    return choose_devices(setting)


def load_detector(settings: Settings) -> DetectorLike:
    """Load the detector that ``settings`` name, in the thread that will run it; raises as ``from_checkpoint`` does."""
    import torch

    from model.detector import Detector

    # torch counts the host's cores, not those of the container.
    torch.set_num_threads(settings.torch_threads or min(torch.get_num_threads(), available_cores()))
    detector = Detector.from_checkpoint(
        settings.weights,
        device=settings.device,
        precision=settings.precision,
        canvas=settings.canvas,
    )
    if detector.device.type == "cuda":  # of this thread: otherwise its pinned memory would belong to the first GPU
        torch.cuda.set_device(detector.device)
    return detector
