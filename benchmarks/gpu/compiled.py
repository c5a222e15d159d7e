"""torchvision's detector with torch.compile, in a process of its own, which is stopped where it takes too long.

    python -m benchmarks.gpu.compiled RESNET50_FPN 800 1344 8 cuda

The whole model where it can be compiled so; else its backbone alone.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.images import Size
from benchmarks.gpu.section import Data, Skipped
from benchmarks.gpu.suite import output

_CALLS = 20
_MARK = "RESULT "


def compiled(preset: str, canvas: Size, batch: int, device: str, seconds: float) -> Data:
    """What the process measured."""
    command = [sys.executable, "-m", "benchmarks.gpu.compiled", preset, *map(str, (*canvas, batch)), device]
    code, said = output(command, max(10.0, seconds))
    for line in said.splitlines():
        if line.startswith(_MARK):
            found: Data = json.loads(line.removeprefix(_MARK))
            return found
    if code is None:
        raise Skipped(f"not measured: it was not compiled within {max(10.0, seconds):.0f} s")
    raise RuntimeError(f"it ended with {code}: {said.strip()[-600:]}")


def measure(preset: str, canvas: Size, batch: int, device: str) -> dict[str, Any]:
    """Compile, warm up, and time some calls, fp16 autocast in channels_last."""
    from benchmarks import pairs
    from benchmarks.gpu.contenders import torchvision
    from benchmarks.gpu.speed import canvas_images, statistics_of

    pixels = canvas_images(preset, canvas, batch)
    errors = []
    for what in ("the whole model", "the backbone"):
        model = pairs.in_torchvision(preset)
        (model if what == "the whole model" else _backbone(model)).compile()
        contender = torchvision(model, "fp16 autocast, channels_last", device)
        begun = time.perf_counter()
        try:
            for _ in range(3):
                contender.timed(pixels, device)
        except Exception as error:
            errors.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")
            torch.compiler.reset()
            continue
        ready = time.perf_counter() - begun
        row = statistics_of([contender.timed(pixels, device) for _ in range(_CALLS)], batch)
        name = "torchvision fp16 autocast, channels_last, torch.compile"
        rows = [{"name": name, "status": "measured", "compiled": what, "ready_s": ready} | row]
        return {"batch": batch, "canvas": canvas, "errors_before": errors, "rows": rows}
    raise RuntimeError("; ".join(errors))


def _backbone(model: nn.Module) -> nn.Module:
    part: nn.Module = model.backbone
    return part


if __name__ == "__main__":
    name, height, width, count, where = sys.argv[1:]
    print(_MARK + json.dumps(measure(name, (int(height), int(width)), int(count), where)), flush=True)
