"""Measure what Ray costs a request: the plain service and the same on Ray Serve, one replica each, in turns.

    python -m benchmarks.serving.ray_overhead

Writes benchmarks/results/scale-out.json, of which docs/scaling.md shows tables. Seconds are noisy on a machine that has
other things to do; the processor time that each process took is less so, and is what the capacity model of
docs/scaling.md counts with.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib import machine, results
from benchmarks.lib.images import mixed_jpegs
from benchmarks.lib.service import descendants, running_service
from model.structures import TIMED_STAGES

COLUMNS = {"median_ms": "median, ms", "per_s": "requests/s"}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class MeasuredService:
    """A running service. pids: of the processes that a request passes through, by their part in it."""

    url: str
    pids: dict[str, int]


def processor_seconds(pid: int) -> float:
    """Return the processor time that all threads of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def serving(weights: str, *options: str) -> Iterator[MeasuredService]:
    """Run ``frcnn serve`` with these options, one thread for the network."""
    settings = {"device": "cpu", "torch_threads": 1, "weights": weights}
    with tempfile.TemporaryDirectory(prefix="scale", dir="/tmp") as folder:  # short: paths of sockets must be
        environment = {"OMP_NUM_THREADS": "1", "RAY_TMPDIR": folder, "RAY_SERVE_LOG_TO_STDERR": "0"}
        with running_service(settings, *options, environment=environment) as service:
            pid = service.process.pid
            yield MeasuredService(service.url, ray_processes(pid) if "--ray" in options else {"replica": pid})


def ray_processes(driver: int) -> dict[str, int]:
    """Return the process ids of Ray's parts that descend from ``driver``, by the names that they give themselves."""
    words = {
        "replica": "ServeReplica",
        "proxy": "ProxyActor",
        "controller": "ServeController",
        "raylet": "/raylet",
    }
    pids = {part: pid for pid, name in descendants(driver).items() for part, word in words.items() if word in name}
    assert pids.keys() == words.keys(), pids
    return pids


async def ask(url: str, path: str, body: bytes | None, clients: int, requests: int) -> tuple[list[float], list[Any]]:
    """Return the milliseconds of each request and the responses, of clients that send one after another."""
    turns, times, responses = iter(range(requests)), [], []

    async def send_in_turn(http: httpx.AsyncClient) -> None:
        for _ in turns:
            begin = time.perf_counter()
            response = await (http.get(path) if body is None else http.post(path, content=body))
            times.append((time.perf_counter() - begin) * 1000)
            assert response.status_code == 200, response.text
            responses.append(response)

    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        await asyncio.gather(*(send_in_turn(http) for _ in range(clients)))
    return times, responses


def measure(service: MeasuredService, path: str, body: bytes | None, clients: int, requests: int) -> dict[str, Any]:
    """Measure one turn: medians and rate, and processor time of a request by process."""
    before = {part: processor_seconds(pid) for part, pid in service.pids.items()}
    begin = time.perf_counter()
    times, responses = asyncio.run(ask(service.url, path, body, clients, requests))
    wall = time.perf_counter() - begin
    used = {part: processor_seconds(pid) - before[part] for part, pid in service.pids.items()}
    turn: dict[str, Any] = {
        "median_ms": statistics.median(times),
        "per_s": requests / wall,
        "processor_ms": {part: seconds / requests * 1000 for part, seconds in used.items()},
        "processor_share": {part: seconds / wall for part, seconds in used.items()},
    }
    if body is not None:
        stages = [response.json()["timings_ms"] for response in responses]
        turn["response_bytes"] = statistics.median(len(response.content) for response in responses)
        turn["decode_ms"] = statistics.median(stage["decode"] for stage in stages)
        turn["engine_ms"] = statistics.median(
            sum(stage[name] for name in TIMED_STAGES) / response.json()["batch_size"]
            for stage, response in zip(stages, responses, strict=True)
        )
    return turn


def summarise(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median, least and most of each figure over the turns."""

    def spread(values: list[float]) -> list[float]:
        return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]

    result: dict[str, Any] = {}
    for name, first in turns[0].items():
        if isinstance(first, dict):
            result[name] = {part: spread([turn[name][part] for turn in turns]) for part in first}
        else:
            result[name] = spread([turn[name] for turn in turns])
    return result


def overhead(weights: str, rounds: int, requests: int) -> dict[str, Any]:
    """Run both services at once and ask them in turns, so that what disturbs one disturbs the other."""
    body = mixed_jpegs(1)[0]
    cases = [("/detect", body, 1), ("/detect", body, 8), ("/livez", None, 1), ("/livez", None, 8)]
    turns: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with serving(weights) as plain, serving(weights, "--ray") as ray:
        for number in range(-1, rounds):  # the first is for warming up
            for path, sent_body, clients in cases:
                for name, service in (("plain", plain), ("ray", ray)):
                    count = max(clients, requests if path == "/detect" else 4 * requests)
                    turn = measure(service, path, sent_body, clients, count)
                    if number >= 0:
                        case = f"{path}, {clients} client{'s' if clients > 1 else ''}"
                        turns.setdefault(case, {}).setdefault(name, []).append(turn)
            print(f"round {number + 1} of {rounds}", flush=True)
    summaries = {case: {name: summarise(by) for name, by in services.items()} for case, services in turns.items()}
    return {"weights": weights, "rounds": rounds, "requests": requests, "image_bytes": len(body), "cases": summaries}


def tables(result: dict[str, Any]) -> list[results.Table]:
    """Return the table of latencies and rates; docs/scaling.md has more."""
    rows = [
        (case, service, *(f"{turns[name][0]:.1f} ({turns[name][1]:.1f} to {turns[name][2]:.1f})" for name in COLUMNS))
        for case, services in result["cases"].items()
        for service, turns in services.items()
    ]
    title = f"{result['weights']}, medians of {result['rounds']} rounds (least to most)."
    return [results.Table(title, ("request", "service", *COLUMNS.values()), rows)]


def conditions(command: str) -> dict[str, Any]:
    """Return when and where a command ran, for its result."""
    load = os.getloadavg()[1]
    return {"date": date.today().isoformat(), "command": command, "cores": machine.cores(), "load_average": load}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=80, help="in a round, of each case")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "scale-out.json")
    arguments = parser.parse_args()
    options = " ".join(f"--{name} {getattr(arguments, name)}" for name in ("weights", "rounds", "requests"))
    result = overhead(arguments.weights, arguments.rounds, arguments.requests)
    results.write_json(arguments.out, conditions(f"python -m benchmarks.serving.ray_overhead {options}") | result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
