"""Images a second and milliseconds a batch, of our detector and of torchvision's in turns.

A call goes from uint8 images in host memory to boxes in host memory. Everybody has a turn in each round, forwards and
backwards, and repeats itself in it; the first two calls of each are for warming up. Ratios are of one run's medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from benchmarks import pairs
from benchmarks.gpu import device as devices
from benchmarks.gpu.agreement import compare
from benchmarks.gpu.compiled import compiled
from benchmarks.gpu.contenders import BASE, KINDS, Contender, ours, torchvision
from benchmarks.gpu.images import Image, Size, images, size_for
from benchmarks.gpu.section import Data, Point, Section, attempt, failure
from benchmarks.gpu.settings import Settings
from model.config import PRESETS
from model.runtime.buckets import Buckets

CANVASES: tuple[tuple[str, Size], ...] = (
    ("RESNET50_FPN", (800, 1088)),
    ("RESNET50_FPN", (800, 1344)),
    ("LITE", (384, 480)),
    ("RESNET50_FPN_V2", (800, 1088)),
    ("MOBILENET_V3_320", (320, 448)),
)
ROUNDS = 5
_KEPT: dict[str, dict[str, Contender | Data]] = {}  # the contenders of the latest preset


_model = lru_cache(maxsize=1)(pairs.in_torchvision)  # a contender takes a copy


def canvas_images(preset: str, canvas: Size, count: int) -> list[Image]:
    """``count`` images that are resized onto exactly that canvas."""
    config = next(config for config in PRESETS if config.name == preset)
    return images(size_for(canvas, Buckets(config.transform).canvas_for), count)


def statistics_of(milliseconds: Sequence[float], batch: int) -> dict[str, float]:
    """What the table shows of one contender's calls."""
    median = statistics.median(milliseconds)
    return {
        "median_ms": median,
        "min_ms": min(milliseconds),
        "max_ms": max(milliseconds),
        "p90_ms": float(np.percentile(milliseconds, 90)),
        "calls": len(milliseconds),
        "images_per_s": batch * 1000 / median,
    }


def wanted(preset: str, batch: int, settings: Settings) -> list[str]:
    """Who competes at that batch: torchvision at its ends alone, our fp32 where it is asked about."""
    low, high = settings.ends
    if settings.tiny:
        return ["ours fp32", BASE] if batch == low else ["ours fp32"]
    names = ["ours fp16", "ours bf16"]
    if preset == "RESNET50_FPN" and batch in (low, high):
        names += ["ours fp32", "ours tf32"]
    return names + [f"torchvision {kind}" for kind in KINDS] if batch in (low, high) else names


def contender(preset: str, name: str, settings: Settings) -> Contender | Data:
    """The contender of that name, made once; or the record of why there is none."""
    if preset not in _KEPT:
        _KEPT.clear()
        _KEPT[preset] = {}
        devices.forget(settings.device)
    if name not in _KEPT[preset]:
        who, _, kind = name.partition(" ")
        made: list[Contender] = []

        def make() -> Data:
            if who == "ours":
                made.append(ours(preset, kind, settings.device))
            else:
                made.append(torchvision(_model(preset), kind, settings.device))
            return {}

        said = attempt(make)
        _KEPT[preset][name] = made[0] if made else said
    return _KEPT[preset][name]


def measure(preset: str, canvas: Size, batch: int, settings: Settings, seconds: float) -> Data:
    """A row for each contender: milliseconds a batch, images a second, and how much of the base's answer it finds."""
    deadline = time.monotonic() + seconds
    pixels = canvas_images(preset, canvas, batch)
    names = wanted(preset, batch, settings)
    everybody = {name: contender(preset, name, settings) for name in names}
    standing = {name: one for name, one in everybody.items() if isinstance(one, Contender)}
    rows = race(standing, pixels, deadline, settings)
    rows |= {name: {"name": name} | one for name, one in everybody.items() if not isinstance(one, Contender)}
    return {"batch": batch, "canvas": canvas, "image": pixels[0].shape[:2], "rows": [rows[name] for name in names]}


def race(standing: dict[str, Contender], pixels: list[Image], deadline: float, settings: Settings) -> dict[str, Data]:
    """A row for each. A contender that raises is out, and the others go on."""
    rows: dict[str, Data] = {}
    answers = {}
    for name, one in list(standing.items()):
        one.milliseconds = []
        try:
            one.timed(pixels, settings.device)
            devices.restore(one.switches)
            answers[name] = one.detect(pixels)
        except Exception as error:
            rows[name] = {"name": name} | failure(error)
            del standing[name]
            _release(settings)
    turn = min(0.25, max(0.0, deadline - time.monotonic()) / (ROUNDS * max(1, len(standing))))
    for number in range(2 if settings.tiny else ROUNDS):
        if number and time.monotonic() > deadline:
            break
        for name in list(standing)[:: -1 if number % 2 else 1]:
            until = time.monotonic() + turn
            try:
                standing[name].milliseconds.append(standing[name].timed(pixels, settings.device))
                while time.monotonic() < until:
                    standing[name].milliseconds.append(standing[name].timed(pixels, settings.device))
            except Exception as error:
                rows[name] = {"name": name} | failure(error)
                del standing[name]
    base = statistics.median(standing[BASE].milliseconds) if BASE in standing else None
    for name, one in standing.items():
        row: dict[str, Any] = {"name": name, "status": "measured"} | statistics_of(one.milliseconds, len(pixels))
        row |= {"ready_s": one.ready_s, "stages_ms": {key: value * 1000 for key, value in one.stages().items()}}
        row["detections"] = sum(len(answer.boxes) for answer in answers[name])
        if base is not None:
            row["to_base"] = base / row["median_ms"]
            row["beside_base"] = attempt(lambda name=name: compare(answers[name], answers[BASE]))  # type: ignore[misc]
        rows[name] = row
    return rows


def _release(settings: Settings) -> None:
    """After a failure, which may have been one of memory; a GPU that is lost fails again with the next contender."""
    if settings.cuda:
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            return


def points(settings: Settings) -> list[Point]:
    """By worth: the presets in their order, of each the smallest and the largest batch first."""
    made: list[Point] = []
    for preset, canvas in CANVASES if not settings.tiny else (CANVASES[2],):
        for batch in settings.batches:
            name = f"{preset} {canvas[0]} x {canvas[1]}, {batch} at once"
            made.append(Point(name, partial(measure, preset, canvas, batch, settings)))
    if settings.cuda:
        (preset, canvas), last = CANVASES[2 if settings.tiny else 1], settings.ends[1]
        name = f"{preset} {canvas[0]} x {canvas[1]}, {last} at once, torchvision compiled"
        made.append(Point(name, partial(compiled, preset, canvas, last, settings.device), weight=10))
    return made


SECTION = Section("speed", points, share=0.6)
