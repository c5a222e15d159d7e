"""Time torchvision's detector with torch.compile, in a process of its own that is stopped where it takes too long.

    python -m benchmarks.gpu.compiled RESNET50_FPN 800 1344 8 cuda

Its backbone alone first, then the whole model.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.section import Data, Skipped, failure
from benchmarks.gpu.suite import output
from benchmarks.lib.images import Size

_CALLS = 20
_MARK = "RESULT "


def compiled(preset: str, canvas: Size, batch: int, device: str, seconds: float) -> Data:
    """Return a row for each part that was compiled in time."""
    command = [sys.executable, "-m", "benchmarks.gpu.compiled", preset, *map(str, (*canvas, batch)), device]
    code, text = output(command, max(10.0, seconds))
    rows = [json.loads(line.removeprefix(_MARK)) for line in text.splitlines() if line.startswith(_MARK)]
    if not rows and code is None:
        raise Skipped(f"not measured: nothing was compiled within {max(10.0, seconds):.0f} s")
    if not rows:
        raise RuntimeError(f"it ended with {code}: {text.strip()[-600:]}")
    return {"batch": batch, "canvas": canvas, "rows": rows}


def measure(part: str, preset: str, canvas: Size, batch: int, device: str) -> dict[str, Any]:
    """Compile, warm up, and time some calls, fp16 autocast in channels_last."""
    from benchmarks.gpu.contenders import torchvision
    from benchmarks.gpu.speed import canvas_images, statistics_of
    from benchmarks.lib import models

    torch.compiler.reset()
    pixels = canvas_images(preset, canvas, batch)
    kind = "fp16 autocast, channels_last" if device.startswith("cuda") else "fp32"
    begin = time.perf_counter()
    contender = torchvision(models.torchvision_detector(preset), kind, device, _COMPILE[part])
    for _ in range(3):
        contender.time(pixels, device)
    ready = time.perf_counter() - begin
    row = statistics_of([contender.time(pixels, device) for _ in range(_CALLS)], batch)
    return {"name": f"torchvision {kind}, torch.compile of {part}", "status": "measured", "ready_s": ready} | row


def _compile_backbone(model: nn.Module) -> None:
    backbone: nn.Module = model.backbone
    backbone.compile()


def _compile(model: nn.Module) -> None:
    model.compile()


# The first is quicker to compile; the whole has parts that are compiled anew for every number of boxes.
_COMPILE = {"the backbone": _compile_backbone, "the whole model": _compile}


if __name__ == "__main__":
    name, height, width, count, where = sys.argv[1:]
    for what in _COMPILE:
        try:
            row = measure(what, name, (int(height), int(width)), int(count), where)
        except Exception as error:
            row = {"name": f"torchvision, torch.compile of {what}"} | failure(error)
        print(_MARK + json.dumps(row), flush=True)
