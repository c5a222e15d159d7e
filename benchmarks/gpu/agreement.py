"""Does the GPU find what the CPU finds, and what torchvision finds? Every preset, in every precision.

Boxes are paired: same class, IoU of 0.8 at least, scores within 0.2, the best overlaps first. Random weights give
answers without meaning, which are harder to keep than trained ones': many boxes lie near a threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from benchmarks import pairs, report
from benchmarks.gpu import device as devices
from benchmarks.gpu.contenders import PRECISIONS, Found, detections, load, torchvision
from benchmarks.gpu.images import Image, image
from benchmarks.gpu.section import Data, Point, Section, attempt
from benchmarks.gpu.selftest import check
from benchmarks.gpu.settings import Settings
from model.boxes import iou
from model.structures import DetectOptions

_IOU, _SCORE = 0.8, 0.2
_PRESETS = ("RESNET50_FPN", "LITE", "RESNET50_FPN_V2", "MOBILENET_V3_320", "MOBILENET_V3_FPN", "PAPER_VGG16")


@dataclass(frozen=True)
class Limit:
    """How far an answer may be off: pixels, score, and the share of boxes without a partner."""

    box_px: float
    score: float
    unmatched: float


# Of random weights; with trained ones a precision does much better. In bf16 on CPUs a quarter to half of the boxes of
# random weights were seen to change places with a neighbour; the limits are for what is broken, not what is coarse.
LIMITS = {
    "fp32": Limit(0.1, 1e-3, 0.03),
    "tf32": Limit(16.0, 0.1, 0.25),
    "fp16": Limit(16.0, 0.1, 0.25),
    "bf16": Limit(48.0, 0.2, 0.60),
}


def compare(found: Sequence[Found], right: Sequence[Found]) -> dict[str, Any]:
    """Pairs, the largest differences over them, and how many boxes of either side have no partner."""
    matched = only_found = only_right = 0
    box = score = 0.0
    for mine, other in zip(found, right, strict=True):
        if not bool(torch.isfinite(mine.boxes).all() & torch.isfinite(mine.scores).all()):
            raise AssertionError("a box or a score is not finite")
        pairs_here = _pairs(mine, other)
        matched += len(pairs_here)
        only_found += len(mine.boxes) - len(pairs_here)
        only_right += len(other.boxes) - len(pairs_here)
        for i, j in pairs_here:
            box = max(box, float((mine.boxes[i] - other.boxes[j]).abs().max()))
            score = max(score, abs(float(mine.scores[i] - other.scores[j])))
    return {"matched": matched, "only_here": only_found, "only_there": only_right, "box_px": box, "score": score}


def _pairs(mine: Found, other: Found) -> list[tuple[int, int]]:
    if not len(mine.boxes) or not len(other.boxes):
        return []
    overlaps = iou(mine.boxes, other.boxes)
    overlaps[mine.labels[:, None] != other.labels[None]] = 0
    overlaps[(mine.scores[:, None] - other.scores[None]).abs() > _SCORE] = 0
    made = []
    while float(overlaps.max()) >= _IOU:
        i, j = divmod(int(overlaps.argmax()), overlaps.shape[1])
        made.append((i, j))
        overlaps[i], overlaps[:, j] = 0, 0
    return made


def judged(figures: dict[str, Any], limit: Limit) -> Data:
    """The figures with their limits, and a failure where one is passed or where nothing was to be found."""
    total = 2 * figures["matched"] + figures["only_here"] + figures["only_there"]
    share = (figures["only_here"] + figures["only_there"]) / total if total else 1.0
    figures = figures | {"unmatched": share, "limits": vars(limit)}
    over = [name for name in ("box_px", "score", "unmatched") if figures[name] > vars(limit)[name]]
    if over:
        said = ", ".join(f"{name} {figures[name]:.4g} (limit {vars(limit)[name]:g})" for name in over)
        return figures | {"status": "failed", "error": f"over the limit: {said}"}
    return figures


def measure(preset: str, settings: Settings, random: bool, _: float) -> Data:
    """One preset: a row for each precision, and for the four of torchvision's one beside it."""
    cpu = load(preset, "fp32", "cpu", "exact", random=random)
    images, options = _images(preset, random)
    right = detections(cpu, images, options)
    canvases = [cpu.canvas_for(*one.shape[:2]) for one in images]

    def beside_cpu(precision: str) -> Data:
        detector = load(preset, precision, settings.device, random=random)
        if [detector.canvas_for(*one.shape[:2]) for one in images] != canvases:
            detector = load(preset, precision, settings.device, "exact", random=random)
        return judged(compare(detections(detector, images, options), right), LIMITS[precision])

    rows = [
        {"name": f"{settings.device} {precision} beside cpu fp32"} | attempt(partial(beside_cpu, precision))
        for precision in _precisions(settings)
    ]
    if preset != "PAPER_VGG16" and not random:
        name = f"{settings.device} fp32 beside torchvision there"
        rows.append({"name": name} | attempt(partial(_beside_torchvision, preset, settings, images)))
    return {"detections": sum(len(one.boxes) for one in right), "images": len(images), "rows": rows}


def _images(preset: str, random: bool) -> tuple[list[Image], DetectOptions]:
    """Photographs for weights that are trained, down to low scores; images from a seed for the others."""
    if preset == "LITE" and not random:
        folder = report.ROOT / "service/web/examples"
        opened = [Pillow.open(folder / name).convert("RGB") for name in ("chelsea.jpg", "camera.jpg")]
        return [np.array(one.resize((640, 480))) for one in opened], DetectOptions(score_threshold=0.02)
    several = preset in ("LITE", "MOBILENET_V3_320")  # small enough for two
    return [image(480, 640, seed=5), image(500, 375, seed=6)][: 1 + several], DetectOptions()


def _beside_torchvision(preset: str, settings: Settings, images: Sequence[Image]) -> Data:
    """The same network in torchvision, on the same device, each image alone, by the preset's own thresholds."""
    contender = torchvision(pairs.in_torchvision(preset), "fp32", settings.device)
    devices.restore(contender.switches)
    right = [answer for one in images for answer in contender.detect([one])]  # together it pads them to one canvas
    detector = load(preset, "fp32", settings.device, "exact")
    limit = LIMITS["tf32" if preset == "LITE" else "fp32"]  # LITE's images are resized by other arithmetic there
    return judged(compare(detections(detector, images), right), limit)


def points(settings: Settings) -> list[Point]:
    """The self-test in each precision, then the presets by their worth."""
    presets = ("LITE",) if settings.tiny else _PRESETS
    made = [
        Point(f"self-test, lite-voc20, {precision}", lambda _, precision=precision: check(precision, settings.device))  # type: ignore[misc]
        for precision in _precisions(settings)
    ]
    made += [Point(preset, partial(measure, preset, settings, False)) for preset in presets]
    return made if settings.tiny else [*made, Point("LITE, random weights", partial(measure, "LITE", settings, True))]


def _precisions(settings: Settings) -> tuple[str, ...]:
    return ("fp32", "fp16") if settings.tiny else PRECISIONS  # of which a CPU offers the first alone


SECTION = Section("agreement", points, share=0.3)
