"""Measure where the time of a call goes on the GPU, and what share of the device's peak it reaches."""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu import device as devices
from benchmarks.gpu import peaks, trace
from benchmarks.gpu.contenders import ours
from benchmarks.gpu.section import Data, Point, Section
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.speed import canvas_images
from benchmarks.lib.images import Size

_CALLS = 5


def measure(preset: str, canvas: Size, batch: int, settings: Settings, _: float) -> Data:
    """Return the figures of ``trace``, the milliseconds of a call without the profiler, and its operations a second."""
    precision = "fp16" if settings.cuda else "fp32"
    contender = ours(preset, precision, settings.device)
    pixels = canvas_images(preset, canvas, batch)
    for _ in range(3):
        contender.time(pixels, settings.device)
    calls = 1 if settings.tiny else _CALLS
    plain = statistics.median(contender.time(pixels, settings.device) for _ in range(3 * calls))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * settings.cuda
    with profile(activities=activities) as profiler:
        for _ in range(calls):
            with record_function(trace.CALL):
                contender.detect(pixels)
        devices.wait(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        figures = trace.read(file, calls)
    if settings.cuda and not figures["kernels"]:
        raise RuntimeError("The profiler recorded no kernel.")
    operations = peaks.flops(preset, pixels[0]) * batch
    return figures | {
        "precision": precision,
        "batch": batch,
        "plain_ms": plain,
        "idle_share_unprofiled": max(0.0, 1 - figures["busy_ms"] / plain) if figures["kernels"] else None,
        "gflop": operations / 1e9,
        "tflops": operations / plain / 1e9,
    }


def points(settings: Settings) -> list[Point]:
    every = [Point("peaks", partial(peaks.measure, settings))]
    canvases = (("RESNET50_FPN", (800, 1344)), ("LITE", (384, 480)))
    for preset, canvas in canvases[settings.tiny :]:
        for batch in settings.ends[: 1 if settings.tiny else 2]:
            name = f"{preset} {canvas[0]} x {canvas[1]}, {batch} at once"
            every.append(Point(name, partial(measure, preset, canvas, batch, settings)))
    return every


SECTION = Section("profile", points, share=0.6)
