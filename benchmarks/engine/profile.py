"""Show where the time of one image goes, by kind of operator.

    python -m benchmarks.engine.profile

torch's profiler over whole calls of ``Detector.detect``, one image of 480 x 640. "Between the operators" is the call's
time less theirs: Python, and the allocation of tensors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.lib import machine, models, results, timing
from benchmarks.lib.images import photographs
from model.detector import Detector
from model.runtime.malloc import configure_malloc

# The first word that is in an operator's name says its kind.
KINDS = {
    "convolutions": ("conv",),
    "matrix products": ("addmm", "::mm", "linear", "matmul", "gemm"),
    "pooling of regions": ("embedding_bag",),
    "NMS": ("nms",),
    "resizing": ("upsample", "interpolate"),
    "sorting, top-k, selecting": ("sort", "topk", "nonzero", "index", "gather", "unique", "where"),
    "activations": ("clamp", "relu", "hardtanh", "sigmoid", "softmax", "exp", "silu"),
    "copies": ("copy_", "cat", "clone", "contiguous", "fill_", "zero_", "constant_pad"),
}
OTHER, BETWEEN = "other arithmetic", "between the operators"


def kind_of(operator: str) -> str:
    """Return the row that an operator counts in."""
    for kind, words in KINDS.items():
        if any(word in operator for word in words):
            return kind
    return OTHER


def measure(preset: str, precision: str, calls: int) -> dict[str, Any]:
    """Return seconds of a call by kind, means over ``calls``, and the median of a call without the profiler."""
    detector = Detector.from_checkpoint(models.checkpoint(preset), device="cpu", precision=precision, canvas="exact")
    images = photographs(1)
    plain = timing.repeat(lambda: detector.detect(images), calls)
    begin = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            detector.detect(images)
    whole = (time.perf_counter() - begin) / calls
    kinds: Counter[str] = Counter()
    for event in profiler.key_averages():
        if "::" in event.key:
            kinds[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / calls
    kinds[BETWEEN] = max(0.0, whole - sum(kinds.values()))
    return {
        "preset": preset,
        "precision": detector.info.precision,
        "seconds": statistics.median(plain),
        "kinds": dict(kinds),
    }


def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return a table for each kind of processor."""
    every = []
    for vectors, run in result.items():
        rows = run["rows"]
        names = (*KINDS, OTHER, BETWEEN)
        totals = [sum(row["kinds"].values()) for row in rows]
        every.append(
            results.Table(
                f"Milliseconds of one image by kind of operator, and their share; {vectors}. "
                f"{machine.sentence(run['machine'])}; {run['calls']} calls.",
                ("kind", *(f"{row['preset']} {row['precision']}" for row in rows)),
                [
                    (
                        name,
                        *(
                            f"{row['kinds'].get(name, 0.0) * 1000:.1f} ({row['kinds'].get(name, 0.0) / total:.0%})"
                            for row, total in zip(rows, totals, strict=True)
                        ),
                    )
                    for name in names
                ]
                + [("the call, without the profiler", *(f"{row['seconds'] * 1000:.1f}" for row in rows))],
            )
        )
    return every


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(models.PRESETS), choices=models.PRESETS)
    parser.add_argument("--precision", default="auto", help="auto, fp32 or bf16")
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    configure_malloc()
    torch.set_num_threads(arguments.threads)
    about = machine.describe("cpu")
    rows = [measure(preset, arguments.precision, arguments.calls) for preset in arguments.presets]
    result = results.load("profile")
    result[machine.widest_vectors(about)] = {"machine": about, "calls": arguments.calls, "rows": rows}
    results.save("profile", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
