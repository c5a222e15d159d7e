"""Measure images a second and milliseconds a batch, of our detector and of torchvision's in turns.

A call goes from uint8 images in host memory to boxes in host memory. Each has a turn in each round, forwards and
backwards, and repeats itself in it; the first two calls of each are for warming up. Ratios are of one run's medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
import torch

from benchmarks.gpu import device as devices
from benchmarks.gpu.agreement import compare
from benchmarks.gpu.compiled import compiled
from benchmarks.gpu.contenders import KINDS, GpuContender, ours, torchvision
from benchmarks.gpu.section import Data, Point, Section, attempt, failure
from benchmarks.gpu.settings import Settings
from benchmarks.lib import models, timing
from benchmarks.lib.contenders import BASE
from benchmarks.lib.images import Size, drawn_image, size_for
from model.presets import PRESETS
from model.runtime.buckets import Buckets
from model.structures import ImageArray

CANVASES: tuple[tuple[str, Size], ...] = (
    ("RESNET50_FPN", (800, 1088)),
    ("RESNET50_FPN", (800, 1344)),
    ("LITE", (384, 480)),
    ("RESNET50_FPN_V2", (800, 1088)),
    ("MOBILENET_V3_320", (320, 448)),
)
ROUNDS = 5
_CONTENDERS: dict[str, dict[str, GpuContender | Data]] = {}  # of the latest preset, by name


_model = lru_cache(maxsize=1)(models.torchvision_detector)  # a contender takes a copy


def canvas_images(preset: str, canvas: Size, count: int) -> list[ImageArray]:
    """Return ``count`` images that are resized onto exactly that canvas."""
    config = next(config for config in PRESETS if config.name == preset)
    size = size_for(canvas, Buckets(config.transform).canvas_for)
    return [drawn_image(*size, seed=seed) for seed in range(count)]


def statistics_of(milliseconds: Sequence[float], batch: int) -> dict[str, float]:
    """Return what the table shows of one contender's calls."""
    median = statistics.median(milliseconds)
    return {
        "median_ms": median,
        "min_ms": min(milliseconds),
        "max_ms": max(milliseconds),
        "p90_ms": float(np.percentile(milliseconds, 90)),
        "calls": len(milliseconds),
        "images_per_s": batch * 1000 / median,
    }


def names_for(preset: str, batch: int, settings: Settings) -> list[str]:
    """Return who competes at a batch size: torchvision and our fp32 at the smallest and the largest only."""
    low, high = settings.ends
    if settings.tiny:
        return ["ours fp32", BASE] if batch == low else ["ours fp32"]
    names = ["ours fp16", "ours bf16"]
    if preset == "RESNET50_FPN" and batch in (low, high):
        names += ["ours fp32", "ours tf32"]
    return names + [f"torchvision {kind}" for kind in KINDS] if batch in (low, high) else names


def contender(preset: str, name: str, settings: Settings) -> GpuContender | Data:
    """Return the contender of that name, built once, or the record of why there is none."""
    if preset not in _CONTENDERS:
        _CONTENDERS.clear()
        _CONTENDERS[preset] = {}
        devices.reset_memory(settings.device)
    if name not in _CONTENDERS[preset]:
        who, _, kind = name.partition(" ")
        built: list[GpuContender] = []

        def build() -> Data:
            if who == "ours":
                built.append(ours(preset, kind, settings.device))
            else:
                built.append(torchvision(_model(preset), kind, settings.device))
            return {}

        record = attempt(build)
        _CONTENDERS[preset][name] = built[0] if built else record
    return _CONTENDERS[preset][name]


def measure(preset: str, canvas: Size, batch: int, settings: Settings, seconds: float) -> Data:
    """Return a row for each contender: milliseconds a batch, images a second, and agreement with torchvision."""
    deadline = time.monotonic() + seconds
    pixels = canvas_images(preset, canvas, batch)
    names = names_for(preset, batch, settings)
    built = {name: contender(preset, name, settings) for name in names}
    contenders = {name: each for name, each in built.items() if isinstance(each, GpuContender)}
    rows = race(contenders, pixels, deadline, settings)
    rows |= {name: {"name": name} | each for name, each in built.items() if not isinstance(each, GpuContender)}
    return {"batch": batch, "canvas": canvas, "image": pixels[0].shape[:2], "rows": [rows[name] for name in names]}


def race(
    contenders: dict[str, GpuContender], pixels: list[ImageArray], deadline: float, settings: Settings
) -> dict[str, Data]:
    """Return a row for each contender, by name. One that raises is left out from then on; the others go on."""
    rows: dict[str, Data] = {}
    answers = {}
    for name, contender in contenders.items():
        try:
            contender.time(pixels, settings.device)
            devices.restore(contender.switches)
            answers[name] = contender.detect(pixels)
        except Exception as error:
            rows[name] = {"name": name} | failure(error)
            _release(settings)
    turn = min(0.25, max(0.0, deadline - time.monotonic()) / (ROUNDS * max(1, len(answers))))
    seconds, errors = timing.interleave(
        {name: partial(contenders[name].detect, pixels) for name in answers},
        2 if settings.tiny else ROUNDS,
        turn=turn,
        deadline=deadline,
        wait=partial(devices.wait, settings.device),
        prepare=lambda name: devices.restore(contenders[name].switches),
    )
    rows |= {name: {"name": name} | failure(error) for name, error in errors.items()}
    figures = {
        name: statistics_of([1000 * each for each in seconds[name]], len(pixels))
        for name in answers
        if name not in errors
    }
    for name, row in figures.items():
        stages = {stage: value * 1000 for stage, value in contenders[name].stages().items()}
        rows[name] = {"name": name, "status": "measured", **row}
        rows[name] |= {"ready_s": contenders[name].ready_s, "stages_ms": stages}
        rows[name]["detections"] = sum(len(answer.boxes) for answer in answers[name])
        if BASE in figures:
            rows[name]["to_base"] = figures[BASE]["median_ms"] / row["median_ms"]
            rows[name]["beside_base"] = attempt(partial(compare, answers[name], answers[BASE]))
    return rows


def _release(settings: Settings) -> None:
    """Free memory after a failure, which may have been for want of it."""
    if settings.cuda:
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            return  # a GPU that is lost fails again with the next contender


def points(settings: Settings) -> list[Point]:
    """Return the presets in the order of their importance, of each the smallest and the largest batch first."""
    every: list[Point] = []
    for preset, canvas in CANVASES if not settings.tiny else (CANVASES[2],):
        for batch in settings.batches:
            name = f"{preset} {canvas[0]} x {canvas[1]}, {batch} at once"
            every.append(Point(name, partial(measure, preset, canvas, batch, settings)))
    if settings.cuda:
        (preset, canvas), last = CANVASES[2 if settings.tiny else 1], settings.ends[1]
        name = f"{preset} {canvas[0]} x {canvas[1]}, {last} at once, torchvision compiled"
        every.append(Point(name, partial(compiled, preset, canvas, last, settings.device), weight=10))
    return every


SECTION = Section("speed", points, share=0.6)
