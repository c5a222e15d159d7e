"""Who detects: our detector in a precision, or torchvision's with the same weights, each as its users have it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks import pairs
from benchmarks.gpu import device as devices
from benchmarks.gpu.images import Image
from benchmarks.gpu.section import Skipped
from model.detector import Detector
from model.structures import DetectOptions

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
BASE = "torchvision fp32"
KINDS = ("fp32", "tf32", "fp16 autocast, channels_last")
_RANDOM = "PAPER_VGG16"  # torchvision has no such detector, and so there are no weights for both


@dataclass
class Found:
    """The answer for one image, float32 [D, 4], [D] and int64 [D], on the CPU."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass
class Contender:
    """``detect`` takes images in host memory and returns once the answers are there too.

    ready_s: seconds to load it and to warm it up. stages: seconds by stage of the last call, where it knows them.
    """

    name: str
    detect: Callable[[Sequence[Image]], list[Found]]
    switches: devices.Switches
    ready_s: float
    milliseconds: list[float] = field(default_factory=list)
    stages: Callable[[], dict[str, float]] = dict

    def timed(self, images: Sequence[Image], device: str) -> float:
        """Milliseconds of one call, from when the device is idle until it is again."""
        devices.restore(self.switches)
        devices.wait(device)
        begun = time.perf_counter()
        self.detect(images)
        devices.wait(device)
        return (time.perf_counter() - begun) * 1000


def load(preset: str, precision: str, device: str, canvas: str = "buckets", *, random: bool = False) -> Detector:
    """Our detector: of the weights that torchvision's gets too, or of random ones.

    Raises ``Skipped`` where this device does not offer the precision.
    """
    devices.defaults()  # what a detector changes is then its own doing, and no other contender's
    try:
        options = {"device": device, "precision": precision, "canvas": canvas}
        if random or preset == _RANDOM:
            return Detector.random(preset, seed=0, **options)
        return Detector.from_checkpoint(pairs.checkpoint(preset), preset=preset, **options)  # type: ignore[arg-type]
    except ValueError as error:
        if "precision" in str(error):
            raise Skipped(f"not offered: {error}") from error
        raise


def detections(detector: Detector, images: Sequence[Image], options: DetectOptions | None = None) -> list[Found]:
    """What it finds."""
    return [Found(one.boxes, one.scores, one.class_ids) for one in detector.detect(images, options)]


def ours(preset: str, precision: str, device: str, canvas: str = "buckets") -> Contender:
    """Our detector, warmed up as the service does it."""
    begun = time.perf_counter()
    detector = load(preset, precision, device, canvas)
    if device.startswith("cuda"):
        detector.warm_up()
    devices.wait(device)
    last: dict[str, float] = {}

    def detect(images: Sequence[Image]) -> list[Found]:
        answers = detector.detect(images)
        last.update(answers[0].timings)
        return [Found(one.boxes, one.scores, one.class_ids) for one in answers]

    ready = time.perf_counter() - begun
    return Contender(f"ours {precision}", detect, devices.switches(), ready, stages=lambda: dict(last))


def torchvision(
    model: nn.Module, kind: str, device: str, prepare: Callable[[nn.Module], None] = lambda _: None
) -> Contender:
    """torchvision's detector. ``model`` on the CPU; kind: one of ``KINDS``; prepare: is given its copy there."""
    begun = time.perf_counter()
    model = copy.deepcopy(model).to(device)
    if "channels_last" in kind:
        model = model.to(memory_format=torch.channels_last)
    prepare(model)
    devices.use_tf32(kind == "tf32")
    half = kind.startswith("fp16")

    def autocast() -> AbstractContextManager[None]:
        return torch.autocast(device.split(":")[0], torch.float16, enabled=half)

    def detect(images: Sequence[Image]) -> list[Found]:
        with torch.inference_mode(), autocast():
            return theirs(model, images, device)

    devices.wait(device)
    return Contender(f"torchvision {kind}", detect, devices.switches(), time.perf_counter() - begun)


def theirs(model: nn.Module, images: Sequence[Image], device: str) -> list[Found]:
    """What torchvision's detector finds: images to the device as bytes, answers back."""
    tensors = [torch.from_numpy(one).to(device).permute(2, 0, 1).float() / 255 for one in images]
    return [Found(a["boxes"].float().cpu(), a["scores"].float().cpu(), a["labels"].cpu()) for a in model(tensors)]
