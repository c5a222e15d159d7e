"""Measure how long a start takes: from the process to the first answer.

    python -m benchmarks.serving.startup --presets LITE --rounds 3

Each start is ``frcnn serve`` in a process of its own. "Ready" is the first 200 of /readyz; then one image is sent.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import httpx

from benchmarks.lib import machine, models, results
from benchmarks.lib.images import cat_jpeg
from benchmarks.lib.service import started_service

MOMENTS = ("listening", "ready", "first answer")


def start(preset: str, threads: int, device: str, limit: float) -> dict[str, float]:
    """Return the seconds from the start of the process to each moment; those after ``limit`` are missing."""
    moments: dict[str, float] = {}
    settings = {"weights": models.checkpoint(preset), "torch_threads": threads, "device": device}
    body, headers = cat_jpeg(), {"Content-Type": "image/jpeg"}
    begin = time.monotonic()
    with (
        started_service(settings, log=subprocess.DEVNULL) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        while "first answer" not in moments and time.monotonic() < begin + limit and service.process.poll() is None:
            try:
                if "ready" in moments:
                    client.post("/detect", content=body, headers=headers).raise_for_status()
                    moments["first answer"] = time.monotonic() - begin
                    break
                status = client.get("/readyz").status_code
                moments.setdefault("listening", time.monotonic() - begin)
                if status == 200:
                    moments["ready"] = time.monotonic() - begin
                    continue
            except httpx.TransportError:
                pass
            time.sleep(0.02)
    return moments


def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return a table for each preset."""
    return [
        results.Table(
            f"{preset}: seconds from the start of the process, {run['rounds']} rounds. "
            f"{machine.sentence(run['machine'])}.",
            ("moment", "s"),
            [(moment, _format(run["seconds"].get(moment))) for moment in MOMENTS],
        )
        for preset, run in result.items()
    ]


def _format(seconds: Mapping[str, float] | None) -> str:
    if seconds is None:
        return "not reached"
    return f"{seconds['median']:.1f} ({seconds['low']:.1f} to {seconds['high']:.1f})"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["LITE"], choices=models.PRESETS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, default=300, help="seconds that a start may take")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for preset in arguments.presets:
        about = machine.describe(arguments.device) | {"torch_threads": arguments.threads}
        seconds: dict[str, list[float]] = defaultdict(list)
        for number in range(arguments.rounds):
            print(f"{preset}, round {number + 1}", flush=True)
            for moment, value in start(preset, arguments.threads, arguments.device, arguments.limit).items():
                seconds[moment].append(value)
        result = results.load("startup")
        result[preset] = {
            "machine": about,
            "rounds": arguments.rounds,
            "seconds": {moment: results.spread(values) for moment, values in seconds.items()},
        }
        results.save("startup", result)
    for table in tables(results.load("startup")):
        table.print()


if __name__ == "__main__":
    main()
