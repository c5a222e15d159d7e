"""How long a start takes: from the process to the first answer, and to the first answer of the compiled engine.

    python -m benchmarks.startup --presets LITE --rounds 3

Each start is ``frcnn serve`` in a process of its own. Cold has an empty cache of compiled code, warm the cache that the
cold one has left. "Ready" is the first 200 of /readyz; then one picture is sent after another, and /model tells which
engine answered.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks import pairs, report
from benchmarks.serve import free_port, picture

MOMENTS = ("listening", "ready", "first answer", "compiled", "first compiled answer")


def start(preset: str, cache: Path, threads: int, device: str, patience: float) -> dict[str, float]:
    """Seconds from the start of the process to each moment; one that did not come in time is missing."""
    port, seen = free_port(), {}
    settings = {
        "port": port,
        "weights": pairs.checkpoint(preset),
        "cache_dir": cache,
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
                    model = client.get("/model").json()
                    compiled = model["engine"] != "eager"
                    if compiled:
                        seen.setdefault("compiled", time.monotonic() - begun)
                    client.post("/detect", content=body, headers=headers).raise_for_status()
                    seen.setdefault("first answer", time.monotonic() - begun)
                    if compiled:
                        seen["first compiled answer"] = time.monotonic() - begun
                        break
                    if model["engine_note"].startswith("Eager:") and "begins" not in model["engine_note"]:
                        break  # it stays so
                    time.sleep(0.1)
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
                ("cache", *MOMENTS),
                [
                    (
                        cache,
                        *(
                            f"{found['median']:.1f} ({found['low']:.1f} to {found['high']:.1f})"
                            if (found := run[cache].get(moment))
                            else "not seen"
                            for moment in MOMENTS
                        ),
                    )
                    for cache in ("cold", "warm")
                ],
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["LITE"], choices=pairs.PRESETS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--patience", type=float, default=300, help="seconds that a start may take until all is compiled"
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for preset in arguments.presets:
        machine = report.environment(arguments.device) | {"torch_threads": arguments.threads}
        seconds: dict[str, dict[str, list[float]]] = {"cold": defaultdict(list), "warm": defaultdict(list)}
        for number in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for kind, moments in seconds.items():
                    print(f"{preset}, round {number + 1}: {kind}", flush=True)
                    seen = start(preset, Path(cache), arguments.threads, arguments.device, arguments.patience)
                    for moment, value in seen.items():
                        moments[moment].append(value)
        result = report.load("startup")
        result[preset] = {"machine": machine, "rounds": arguments.rounds} | {
            kind: {moment: report.spread(values) for moment, values in moments.items()}
            for kind, moments in seconds.items()
        }
        report.save("startup", result)
    for table in tables(report.load("startup")):
        table.print()


if __name__ == "__main__":
    main()
