"""How long a start takes: from the process to the first answer.

    python -m benchmarks.startup --presets LITE --rounds 3

Each start is ``frcnn serve`` in a process of its own. "Ready" is the first 200 of /readyz; then one picture is sent.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks import pairs, report
from benchmarks.serve import free_port, picture

MOMENTS = ("listening", "ready", "first answer")


def start(preset: str, threads: int, device: str, patience: float) -> dict[str, float]:
    """Seconds from the start of the process to each moment; one that did not come in time is missing."""
    port, seen = free_port(), {}
    settings = {
        "port": port,
        "weights": pairs.checkpoint(preset),
        "torch_threads": threads,
        "device": device,
        "log_level": "error",
    }
    environment = os.environ | {f"FRCNN_{name.upper()}": str(value) for name, value in settings.items()}
    begun = time.monotonic()
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("frcnn")), "serve"], env=environment, stdout=subprocess.DEVNULL
    )
    body, headers = picture(), {"Content-Type": "image/jpeg"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while time.monotonic() < begun + patience and process.poll() is None:
                try:
                    if "ready" not in seen:
                        status = client.get("/readyz").status_code
                        seen.setdefault("listening", time.monotonic() - begun)
                        if status == 200:
                            seen["ready"] = time.monotonic() - begun
                        else:
                            time.sleep(0.02)
                        continue
                    client.post("/detect", content=body, headers=headers).raise_for_status()
                    seen["first answer"] = time.monotonic() - begun
                    break
                except httpx.TransportError:
                    time.sleep(0.02)
    finally:
        report.stop(process)
    return seen


def tables(result: Mapping[str, Any]) -> list[report.Table]:
    """For the page and the terminal."""
    made = []
    for preset, run in result.items():
        made.append(
            report.Table(
                f"{preset}: seconds from the start of the process, {run['rounds']} rounds. "
                f"{report.where(run['machine'])}.",
                ("moment", "s"),
                [
                    (
                        moment,
                        f"{found['median']:.1f} ({found['low']:.1f} to {found['high']:.1f})"
                        if (found := run["seconds"].get(moment))
                        else "not seen",
                    )
                    for moment in MOMENTS
                ],
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["LITE"], choices=pairs.PRESETS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--patience", type=float, default=300, help="seconds that a start may take")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for preset in arguments.presets:
        machine = report.environment(arguments.device) | {"torch_threads": arguments.threads}
        seconds: dict[str, list[float]] = defaultdict(list)
        for number in range(arguments.rounds):
            print(f"{preset}, round {number + 1}", flush=True)
            for moment, value in start(preset, arguments.threads, arguments.device, arguments.patience).items():
                seconds[moment].append(value)
        result = report.load("startup")
        result[preset] = {
            "machine": machine,
            "rounds": arguments.rounds,
            "seconds": {moment: report.spread(values) for moment, values in seconds.items()},
        }
        report.save("startup", result)
    for table in tables(report.load("startup")):
        table.print()


if __name__ == "__main__":
    main()
