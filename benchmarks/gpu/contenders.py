"""Who is compared on a GPU: our detector in a precision, or torchvision's with the same weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.gpu import device as devices
from benchmarks.gpu.section import Skipped
from benchmarks.lib import models
from benchmarks.lib.contenders import Contender, DetectedBoxes, detect_with_torchvision, detector_contender
from model.detector import Detector
from model.structures import DetectOptions, ImageArray

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
KINDS = ("fp32", "tf32", "fp16 autocast, channels_last")
_RANDOM = "PAPER_VGG16"  # torchvision has no such detector, and so there are no weights for both


@dataclass
class GpuContender(Contender):
    """A contender and how torch must be set for it.

    ready_s: seconds to load it and to warm it up.
    """

    switches: devices.Switches = ()
    ready_s: float = 0.0

    def time(self, images: Sequence[ImageArray], device: str) -> float:
        """Return the milliseconds of one call, from an idle device to an idle device."""
        devices.restore(self.switches)
        return 1000 * devices.time_call(lambda: self.detect(images), device)


def load(preset: str, precision: str, device: str, canvas: str = "buckets", *, random: bool = False) -> Detector:
    """Load our detector with the weights that torchvision's gets too, or with random ones.

    Raises ``Skipped`` where this device does not offer the precision.
    """
    devices.restore_defaults()  # what a detector changes is then its own doing, and no other contender's
    try:
        options = {"device": device, "precision": precision, "canvas": canvas}
        if random or preset == _RANDOM:
            return Detector.random(preset, seed=0, **options)
        return Detector.from_checkpoint(models.checkpoint(preset), preset=preset, **options)  # type: ignore[arg-type]
    except ValueError as error:
        if "precision" in str(error):
            raise Skipped(f"not offered: {error}") from error
        raise


def detect(
    detector: Detector, images: Sequence[ImageArray], options: DetectOptions | None = None
) -> list[DetectedBoxes]:
    """Return what our detector finds."""
    return [DetectedBoxes.of(detections) for detections in detector.detect(images, options)]


def ours(preset: str, precision: str, device: str, canvas: str = "buckets") -> GpuContender:
    """Build our detector, warmed up as the service does it."""
    begin = time.perf_counter()
    detector = load(preset, precision, device, canvas)
    if device.startswith("cuda"):
        detector.warm_up()
    devices.wait(device)
    ready = time.perf_counter() - begin
    contender = detector_contender(detector, f"ours {precision}")
    return GpuContender(contender.name, contender.detect, contender.stages, devices.switches(), ready)


def torchvision(
    model: nn.Module, kind: str, device: str, prepare: Callable[[nn.Module], None] = lambda _: None
) -> GpuContender:
    """Build torchvision's detector. model: on the CPU. kind: one of ``KINDS``. prepare: gets the copy on the device."""
    begin = time.perf_counter()
    model = copy.deepcopy(model).to(device)
    if "channels_last" in kind:
        model = model.to(memory_format=torch.channels_last)
    prepare(model)
    devices.use_tf32(kind == "tf32")
    half = kind.startswith("fp16")

    def run(images: Sequence[ImageArray]) -> list[DetectedBoxes]:
        with torch.inference_mode(), torch.autocast(device.split(":")[0], torch.float16, enabled=half):
            return detect_with_torchvision(model, images, device)

    devices.wait(device)
    ready = time.perf_counter() - begin
    return GpuContender(f"torchvision {kind}", run, switches=devices.switches(), ready_s=ready)
