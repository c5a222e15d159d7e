"""What is compared: detectors that take the same images and answer in the same form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.boxes import iou
from model.detector import Detector
from model.structures import Detections, ImageArray

BASE = "torchvision fp32"  # what every ratio is to


@dataclass
class DetectedBoxes:
    """The answer for one image, on the CPU.

    boxes: float32 [D, 4] xyxy in the image's pixels. scores: float32 [D]. labels: int64 [D].
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    @classmethod
    def of(cls, detections: Detections) -> DetectedBoxes:
        """Convert the answer of our detector."""
        return cls(detections.boxes, detections.scores, detections.class_ids)


@dataclass
class Contender:
    """``detect`` takes images in host memory and returns once the answers are there too.

    stages: returns the seconds by stage of the latest call, where the contender knows them.
    """

    name: str
    detect: Callable[[Sequence[ImageArray]], list[DetectedBoxes]]
    stages: Callable[[], dict[str, float]] = dict


def detector_contender(detector: Detector, name: str) -> Contender:
    """Make a contender of our detector."""
    timings: dict[str, float] = {}

    def detect(images: Sequence[ImageArray]) -> list[DetectedBoxes]:
        detections = detector.detect(images)
        timings.update(detections[0].timings)
        return [DetectedBoxes.of(each) for each in detections]

    return Contender(name, detect, lambda: dict(timings))


def detect_with_torchvision(model: nn.Module, images: Sequence[ImageArray], device: str) -> list[DetectedBoxes]:
    """Run torchvision's detector as its users do: bytes to the device, float32 there, answers back."""
    tensors = [torch.from_numpy(image).to(device).permute(2, 0, 1).float() / 255 for image in images]
    return [
        DetectedBoxes(answer["boxes"].float().cpu(), answer["scores"].float().cpu(), answer["labels"].cpu())
        for answer in model(tensors)
    ]


def share_found(answers: Sequence[DetectedBoxes], expected: Sequence[DetectedBoxes]) -> float:
    """Return the share of the expected boxes that were found: same label, IoU of at least 0.9, score within 0.1."""
    hits = total = 0
    for answer, right in zip(answers, expected, strict=True):
        total += len(right.boxes)
        if len(answer.boxes) and len(right.boxes):
            near = iou(right.boxes, answer.boxes) >= 0.9
            near &= (right.scores[:, None] - answer.scores[None]).abs() <= 0.1
            near &= right.labels[:, None] == answer.labels[None]
            hits += int(near.any(dim=1).sum())
    return hits / total if total else 1.0
