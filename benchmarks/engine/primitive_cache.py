"""Measure how many compiled primitives oneDNN should keep for mixed traffic: time saved against memory.

    python -m benchmarks.engine.primitive_cache

A service meets nine canvases and batches of one to eight images. oneDNN compiles a primitive for each layer, canvas and
batch, and keeps the latest, as many as ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` says (set in model/runtime/malloc.py). Here
every pair of canvas and batch comes once in a sweep, in another order each time; the first sweep compiles everything,
the others need it again. Each capacity has a process of its own, and they take turns.
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

from benchmarks.lib import machine, models, results
from model.detector import Detector
from model.runtime.malloc import PRIMITIVES, configure_malloc

DEFAULT, OURS = 1024, PRIMITIVES
CAPACITIES = (128, DEFAULT, OURS)
MAX_BATCH = 8


def sweeps(preset: str, count: int, threads: int) -> list[dict[str, float]]:
    """Return the seconds of each sweep and the MiB resident after it, in this process."""
    torch.set_num_threads(threads)
    detector = Detector.from_checkpoint(models.checkpoint(preset), device="cpu")
    batches = [(canvas, size) for canvas in detector.buckets.canvases for size in range(1, MAX_BATCH + 1)]
    rng, measured = random.Random(5), []
    for _ in range(count):
        rng.shuffle(batches)
        begin = time.perf_counter()
        for (height, width), size in batches:
            detector.detect([np.full((height, width, 3), 128, np.uint8)] * size)
        seconds = time.perf_counter() - begin
        measured.append({"seconds": seconds, "mib": psutil.Process().memory_info().rss / 2**20})
    return measured


def measure(preset: str, count: int, rounds: int, threads: int) -> dict[str, list[list[dict[str, float]]]]:
    """Return, by capacity, a list of sweeps for each round."""
    rounds_by_capacity: dict[str, list[list[dict[str, float]]]] = {str(capacity): [] for capacity in CAPACITIES}
    command = [sys.executable, "-m", "benchmarks.engine.primitive_cache", "--preset", preset, "--threads", str(threads)]
    for number in range(rounds):
        for capacity in CAPACITIES if number % 2 == 0 else reversed(CAPACITIES):
            print(f"{preset}, round {number + 1}: capacity {capacity}", flush=True)
            environment = os.environ | {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(capacity)}
            run = subprocess.run(
                [*command, "--child", str(count)], env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            rounds_by_capacity[str(capacity)].append(json.loads(run.stdout.splitlines()[-1]))
    return rounds_by_capacity


def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return a table for each preset."""
    every = []
    for preset, run in result.items():
        rows = []
        for capacity, rounds in run["pieces"].items():
            first = [r[0]["seconds"] for r in rounds]
            later = [sweep["seconds"] for r in rounds for sweep in r[1:]]
            usual = " (oneDNN's own)" if int(capacity) == DEFAULT else " (ours)" if int(capacity) == OURS else ""
            rows.append(
                (
                    f"{int(capacity):,}{usual}",
                    f"{statistics.median(first):.1f}",
                    f"{statistics.median(later):.1f} ({min(later):.1f} to {max(later):.1f})",
                    f"{statistics.median(r[1]['mib'] for r in rounds):,.0f}",
                    f"{statistics.median(r[-1]['mib'] for r in rounds):,.0f}",
                )
            )
        every.append(
            results.Table(
                f"{preset}: {run['batches']} pairs of canvas and batch, {run['sweeps']} times each; "
                f"{len(next(iter(run['pieces'].values())))} rounds. {machine.sentence(run['machine'])}.",
                (
                    "primitives kept",
                    "s, first sweep",
                    "s, later sweeps",
                    "MiB after the second sweep",
                    "MiB after the last",
                ),
                rows,
            )
        )
    return every


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="LITE", choices=models.PRESETS)
    parser.add_argument("--sweeps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    configure_malloc()
    if arguments.child:
        print(json.dumps(sweeps(arguments.preset, arguments.child, arguments.threads)))
        return
    about = machine.describe("cpu") | {"torch_threads": arguments.threads}
    measured = measure(arguments.preset, arguments.sweeps, arguments.rounds, arguments.threads)
    canvases = Detector.from_checkpoint(models.checkpoint(arguments.preset), device="cpu").buckets.canvases
    result = results.load("primitive-cache")
    result[arguments.preset] = {
        "machine": about,
        "sweeps": arguments.sweeps,
        "batches": len(canvases) * MAX_BATCH,
        "pieces": measured,
    }
    results.save("primitive-cache", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
