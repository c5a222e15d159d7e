"""Measure the most memory that a detector takes on the device, by preset and batch, weights included."""

from __future__ import annotations

import gc
from functools import partial

from benchmarks.gpu import device as devices
from benchmarks.gpu.contenders import ours
from benchmarks.gpu.section import Data, Point, Section
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.speed import canvas_images
from model.presets import PRESETS
from model.runtime.buckets import Buckets


def measure(preset: str, batch: int, settings: Settings, _: float) -> Data:
    """Measure on the preset's largest canvas; loading and warm-up count too."""
    gc.collect()
    devices.reset_memory(settings.device)
    precision = "fp16" if settings.cuda else "fp32"
    config = next(config for config in PRESETS if config.name == preset)
    canvas = Buckets(config.transform).canvases[-1]
    contender = ours(preset, precision, settings.device)
    ready = devices.peak_memory(settings.device)
    pixels = canvas_images(preset, canvas, batch)
    contender.detect(pixels)
    contender.detect(pixels)
    return {"precision": precision, "batch": batch, "canvas": canvas, "ready": ready} | devices.peak_memory(
        settings.device
    )


def points(settings: Settings) -> list[Point]:
    presets = ["RESNET50_FPN", "LITE", "RESNET50_FPN_V2", "MOBILENET_V3_320", "MOBILENET_V3_FPN", "PAPER_VGG16"]
    return [
        Point(f"{preset}, {batch} at once", partial(measure, preset, batch, settings))
        for preset in (presets[1:2] if settings.tiny else presets)
        for batch in settings.ends[: 1 if settings.tiny else 2]
    ]


SECTION = Section("memory", points, share=1.0)
