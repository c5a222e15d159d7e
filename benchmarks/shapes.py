"""What mixed traffic costs where oneDNN forgets the code that it has made, and what remembering it costs.

    python -m benchmarks.shapes

A service meets nine canvases and batches of one to eight pictures. oneDNN makes code for each layer, canvas and
batch, and keeps so many pieces of it, the latest (model/runtime/malloc.py). Here every pair of canvas and batch comes
once a sweep, in an order of its own each time; the first sweep makes all code, the others need it again. Each number of
pieces has a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks import pairs, report
from model.detector import Detector
from model.runtime.malloc import PRIMITIVES, configure_malloc

DEFAULT, OURS = 1024, PRIMITIVES
PIECES = (128, DEFAULT, OURS)
MOST = 8


def sweeps(preset: str, count: int, threads: int) -> list[dict[str, float]]:
    """Seconds of each sweep, and MiB resident after it: in this process."""
    torch.set_num_threads(threads)
    configure_malloc()
    detector = Detector.from_checkpoint(pairs.checkpoint(preset), device="cpu")
    batches = [(canvas, size) for canvas in detector.buckets.canvases for size in range(1, MOST + 1)]
    dice, made = random.Random(5), []
    for _ in range(count):
        dice.shuffle(batches)
        begun = time.perf_counter()
        for (height, width), size in batches:
            detector.detect([np.full((height, width, 3), 128, np.uint8)] * size)
        seconds = time.perf_counter() - begun
        made.append({"seconds": seconds, "mib": psutil.Process().memory_info().rss / 2**20})
    return made


def measure(preset: str, count: int, rounds: int, threads: int) -> dict[str, list[list[dict[str, float]]]]:
    """By pieces: a list of sweeps for each round."""
    found: dict[str, list[list[dict[str, float]]]] = {str(pieces): [] for pieces in PIECES}
    command = [sys.executable, "-m", "benchmarks.shapes", "--preset", preset, "--threads", str(threads)]
    for number in range(rounds):
        for pieces in PIECES if number % 2 == 0 else reversed(PIECES):
            print(f"{preset}, round {number + 1}: {pieces} pieces", flush=True)
            environment = os.environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(pieces)}
            run = subprocess.run(
                [*command, "--child", str(count)], env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            found[str(pieces)].append(json.loads(run.stdout.splitlines()[-1]))
    return found


def tables(result: Mapping[str, Any]) -> list[report.Table]:
    """For the page and the terminal."""
    made = []
    for preset, run in result.items():
        rows = []
        for pieces, rounds in run["pieces"].items():
            first = [one[0]["seconds"] for one in rounds]
            later = [sweep["seconds"] for one in rounds for sweep in one[1:]]
            usual = " (oneDNN's own)" if int(pieces) == DEFAULT else " (ours)" if int(pieces) == OURS else ""
            rows.append(
                (
                    f"{int(pieces):,}{usual}",
                    f"{statistics.median(first):.1f}",
                    f"{statistics.median(later):.1f} ({min(later):.1f} to {max(later):.1f})",
                    f"{statistics.median(one[1]['mib'] for one in rounds):,.0f}",
                    f"{statistics.median(one[-1]['mib'] for one in rounds):,.0f}",
                )
            )
        made.append(
            report.Table(
                f"{preset}: {run['batches']} pairs of canvas and batch, {run['sweeps']} times each; "
                f"{len(next(iter(run['pieces'].values())))} rounds. {report.where(run['machine'])}.",
                (
                    "pieces kept",
                    "s, first sweep",
                    "s, later sweeps",
                    "MiB after the second sweep",
                    "MiB after the last",
                ),
                rows,
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="LITE", choices=pairs.PRESETS)
    parser.add_argument("--sweeps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(sweeps(arguments.preset, arguments.child, arguments.threads)))
        return
    machine = report.environment("cpu") | {"torch_threads": arguments.threads}
    pieces = measure(arguments.preset, arguments.sweeps, arguments.rounds, arguments.threads)
    canvases = Detector.from_checkpoint(pairs.checkpoint(arguments.preset), device="cpu").buckets.canvases
    result = report.load("shapes")
    result[arguments.preset] = {
        "machine": machine,
        "sweeps": arguments.sweeps,
        "batches": len(canvases) * MOST,
        "pieces": pieces,
    }
    report.save("shapes", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
