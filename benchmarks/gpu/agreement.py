"""Compare what the GPU finds with what the CPU and torchvision find: every preset, in every precision.

Boxes are paired: same class, IoU of 0.8 at least, scores within 0.2, the best overlaps first. Random weights give
answers that are harder to reproduce than trained ones: many boxes lie near a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu import device as devices
from benchmarks.gpu.contenders import PRECISIONS, detect, load, torchvision
from benchmarks.gpu.section import Data, Point, Section, attempt
from benchmarks.gpu.selftest import check
from benchmarks.gpu.settings import Settings
from benchmarks.lib import models
from benchmarks.lib.contenders import DetectedBoxes
from benchmarks.lib.images import EXAMPLES, drawn_image
from model.boxes import iou
from model.structures import DetectOptions, ImageArray

_IOU, _SCORE = 0.8, 0.2
_PRESETS = ("RESNET50_FPN", "LITE", "RESNET50_FPN_V2", "MOBILENET_V3_320", "MOBILENET_V3_FPN", "PAPER_VGG16")


@dataclass(frozen=True)
class Limit:
    """How far an answer may differ: pixels, score, and the share of boxes without a partner."""

    box_px: float
    score: float
    unmatched: float


# For random weights; trained ones differ much less. In bf16 on CPUs a quarter to half of the boxes of random weights
# change places with a neighbour: the limits catch what is broken, not what is coarse.
LIMITS = {
    "fp32": Limit(0.1, 1e-3, 0.03),
    "tf32": Limit(16.0, 0.1, 0.25),
    "fp16": Limit(16.0, 0.1, 0.25),
    "bf16": Limit(48.0, 0.2, 0.60),
}


def compare(answers: Sequence[DetectedBoxes], expected: Sequence[DetectedBoxes]) -> dict[str, Any]:
    """Return how many boxes pair up, the largest differences of the pairs, and how many boxes have no partner."""
    matched = only_here = only_there = 0
    box = score = 0.0
    for answer, other in zip(answers, expected, strict=True):
        if not bool(torch.isfinite(answer.boxes).all() & torch.isfinite(answer.scores).all()):
            raise AssertionError("a box or a score is not finite")
        pairs = _pairs(answer, other)
        matched += len(pairs)
        only_here += len(answer.boxes) - len(pairs)
        only_there += len(other.boxes) - len(pairs)
        for i, j in pairs:
            box = max(box, float((answer.boxes[i] - other.boxes[j]).abs().max()))
            score = max(score, abs(float(answer.scores[i] - other.scores[j])))
    return {"matched": matched, "only_here": only_here, "only_there": only_there, "box_px": box, "score": score}


def _pairs(answer: DetectedBoxes, other: DetectedBoxes) -> list[tuple[int, int]]:
    """Return rows of either answer that belong together, the best overlaps first."""
    if not len(answer.boxes) or not len(other.boxes):
        return []
    overlaps = iou(answer.boxes, other.boxes)
    overlaps[answer.labels[:, None] != other.labels[None]] = 0
    overlaps[(answer.scores[:, None] - other.scores[None]).abs() > _SCORE] = 0
    pairs = []
    while float(overlaps.max()) >= _IOU:
        i, j = divmod(int(overlaps.argmax()), overlaps.shape[1])
        pairs.append((i, j))
        overlaps[i], overlaps[:, j] = 0, 0
    return pairs


def check_limits(figures: dict[str, Any], limit: Limit) -> Data:
    """Return the figures with their limits, and a failure where one is passed or where there was nothing to find."""
    total = 2 * figures["matched"] + figures["only_here"] + figures["only_there"]
    share = (figures["only_here"] + figures["only_there"]) / total if total else 1.0
    figures = figures | {"unmatched": share, "limits": vars(limit)}
    over = [name for name in ("box_px", "score", "unmatched") if figures[name] > vars(limit)[name]]
    if over:
        details = ", ".join(f"{name} {figures[name]:.4g} (limit {vars(limit)[name]:g})" for name in over)
        return figures | {"status": "failed", "error": f"over the limit: {details}"}
    return figures


def measure(preset: str, settings: Settings, random: bool, _: float) -> Data:
    """Return a row for each precision of a preset, and one beside torchvision where that has the preset."""
    cpu = load(preset, "fp32", "cpu", "exact", random=random)
    images, options = _images(preset, random)
    expected = detect(cpu, images, options)
    canvases = [cpu.canvas_for(*image.shape[:2]) for image in images]

    def beside_cpu(precision: str) -> Data:
        detector = load(preset, precision, settings.device, random=random)
        if [detector.canvas_for(*image.shape[:2]) for image in images] != canvases:
            detector = load(preset, precision, settings.device, "exact", random=random)
        return check_limits(compare(detect(detector, images, options), expected), LIMITS[precision])

    rows = [
        {"name": f"{settings.device} {precision} beside cpu fp32"} | attempt(partial(beside_cpu, precision))
        for precision in _precisions(settings)
    ]
    if preset != "PAPER_VGG16" and not random:
        name = f"{settings.device} fp32 beside torchvision there"
        rows.append({"name": name} | attempt(partial(_beside_torchvision, preset, settings, images)))
    return {"detections": sum(len(answer.boxes) for answer in expected), "images": len(images), "rows": rows}


def _images(preset: str, random: bool) -> tuple[list[ImageArray], DetectOptions]:
    """Return photographs, down to low scores, for trained weights; images from a seed for the others."""
    if preset == "LITE" and not random:
        photographs = [Image.open(EXAMPLES / name).convert("RGB") for name in ("chelsea.jpg", "camera.jpg")]
        return [np.array(photograph.resize((640, 480))) for photograph in photographs], DetectOptions(
            score_threshold=0.02
        )
    several = preset in ("LITE", "MOBILENET_V3_320")  # small enough for two
    return [drawn_image(480, 640, seed=5), drawn_image(500, 375, seed=6)][: 1 + several], DetectOptions()


def _beside_torchvision(preset: str, settings: Settings, images: Sequence[ImageArray]) -> Data:
    """Compare with torchvision on the same device, each image alone, by the preset's own thresholds."""
    contender = torchvision(models.torchvision_detector(preset), "fp32", settings.device)
    devices.restore(contender.switches)
    expected = [answer for image in images for answer in contender.detect([image])]  # together they share a canvas
    detector = load(preset, "fp32", settings.device, "exact")
    limit = LIMITS["tf32" if preset == "LITE" else "fp32"]  # torchvision resizes LITE's images by other arithmetic
    return check_limits(compare(detect(detector, images), expected), limit)


def points(settings: Settings) -> list[Point]:
    """Return the self-test in each precision, then the presets in the order of their importance."""
    presets = ("LITE",) if settings.tiny else _PRESETS
    every = [
        Point(f"self-test, lite-voc20, {precision}", lambda _, precision=precision: check(precision, settings.device))  # type: ignore[misc]
        for precision in _precisions(settings)
    ]
    every += [Point(preset, partial(measure, preset, settings, False)) for preset in presets]
    return every if settings.tiny else [*every, Point("LITE, random weights", partial(measure, "LITE", settings, True))]


def _precisions(settings: Settings) -> tuple[str, ...]:
    return ("fp32", "fp16") if settings.tiny else PRECISIONS  # of which a CPU offers the first alone


SECTION = Section("agreement", points, share=0.3)
