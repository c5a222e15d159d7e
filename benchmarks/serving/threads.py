"""Measure our service on LITE with other numbers of torch's threads and of processes that decode.

python -m benchmarks.serving.threads --rounds 2
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lib import machine, results
from benchmarks.lib.service import free_port
from benchmarks.serving import wrk
from benchmarks.serving.servers import our_server, post, running

CLIENTS = 8
# torch's threads, image processes, OMP_WAIT_POLICY
COMBINATIONS = ((1, 1, ""), (1, 2, ""), (2, 1, ""), (2, 2, ""), (2, 4, ""), (2, 1, "passive"), (2, 2, "passive"))


def measure(rounds: int, seconds: float, device: str) -> dict[str, Any]:
    """Start a service for each combination, in rounds forwards and backwards."""
    about = machine.describe(device)
    points: dict[tuple[int, int, str], list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for combination in COMBINATIONS if number % 2 == 0 else reversed(COMBINATIONS):
                torch_threads, image_processes, wait_policy = combination
                port = free_port()
                server = our_server("LITE", torch_threads, device, port, image_processes=image_processes)
                if wait_policy:
                    environment = dict(server.environment) | {"OMP_WAIT_POLICY": wait_policy}
                    server = dataclasses.replace(server, environment=environment)
                print(f"round {number + 1}: {combination}", flush=True)
                with running(server, port, Path(folder)) as url:
                    post(url, server)
                    wrk.load(url, server, CLIENTS, 2, Path(folder), stages=False)
                    points[combination].append(wrk.load(url, server, CLIENTS, seconds, Path(folder), stages=False))
    rows = [
        {"torch": torch_threads, "decode": image_processes, "omp_wait": wait or "default", **wrk.summarise(runs)}
        for (torch_threads, image_processes, wait), runs in points.items()
    ]
    return {"machine": about, "rounds": rounds, "seconds": seconds, "clients": CLIENTS, "rows": rows}


def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return the table."""
    rows = [
        (
            f"{row['torch']} / {row['decode']} / {row['omp_wait']}",
            wrk.format_rate(row["requests_per_s"]),
            f"{row['p50'] * 1000:.1f}",
            f"{row['p99'] * 1000:.1f}",
        )
        for row in result["rows"]
    ]
    title = f"Our service on LITE, {result['clients']} clients. {machine.sentence(result['machine'])}."
    columns = ("torch's threads / image processes / OMP_WAIT_POLICY", "requests/s", "p50 ms", "p99 ms")
    return [results.Table(title, columns, rows)]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="of a point")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers that were started are ended
    result = measure(arguments.rounds, arguments.seconds, arguments.device)
    results.save("threads", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
