"""Where the time of a call goes on the GPU, and what share of the device's peak it reaches."""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.gpu import device as devices
from benchmarks.gpu import peaks, trace
from benchmarks.gpu.contenders import ours
from benchmarks.gpu.images import Size
from benchmarks.gpu.section import Data, Point, Section
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.speed import canvas_images

_CALLS = 5


def measure(preset: str, canvas: Size, batch: int, settings: Settings, _: float) -> Data:
    """The figures of ``trace`` a call; the milliseconds of one without the profiler; and its operations a second."""
    precision = "fp16" if settings.cuda else "fp32"
    contender = ours(preset, precision, settings.device)
    pixels = canvas_images(preset, canvas, batch)
    for _ in range(3):
        contender.timed(pixels, settings.device)
    calls = 1 if settings.tiny else _CALLS
    plain = statistics.median(contender.timed(pixels, settings.device) for _ in range(3 * calls))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * settings.cuda
    with profile(activities=activities) as found:
        for _ in range(calls):
            with record_function(trace.CALL):
                contender.detect(pixels)
        devices.wait(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        found.export_chrome_trace(str(file))
        seen = trace.read(file, calls)
    if settings.cuda and not seen["kernels"]:
        raise RuntimeError("The profiler has seen no kernel.")
    operations = peaks.flops(preset, pixels[0]) * batch
    return seen | {
        "precision": precision,
        "batch": batch,
        "plain_ms": plain,
        "idle_share_unprofiled": max(0.0, 1 - seen["busy_ms"] / plain) if seen["kernels"] else None,
        "gflop": operations / 1e9,
        "tflops": operations / plain / 1e9,
    }


def points(settings: Settings) -> list[Point]:
    made = [Point("peaks", partial(peaks.measure, settings))]
    canvases = (("RESNET50_FPN", (800, 1344)), ("LITE", (384, 480)))
    for preset, canvas in canvases[settings.tiny :]:
        for batch in settings.ends[: 1 if settings.tiny else 2]:
            name = f"{preset} {canvas[0]} x {canvas[1]}, {batch} at once"
            made.append(Point(name, partial(measure, preset, canvas, batch, settings)))
    return made


SECTION = Section("profile", points, share=0.6)
