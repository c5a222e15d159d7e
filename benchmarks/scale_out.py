"""What Ray costs a request: the plain service and the same on Ray Serve, one replica each, asked by turns.

    python -m benchmarks.scale_out              # the overhead, into results/scale-out.json
    python -m benchmarks.scale_out --ledger     # a replica and a node killed under load, into results/ray-ledger.json
    python -m tools.docs                        # the tables of docs/scaling.md, from both

Seconds are noisy on a machine that has other things to do; the processor time that each process took is less so, and is
what the capacity model of docs/scaling.md counts with.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import pictures
from benchmarks.ray_ledger import run_ledger

RESULTS = Path(__file__).parent / "results"
START = 300  # seconds for a service to be ready
ENGINE = ("transform", "backbone", "rpn", "roi_head", "postprocess")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Service:
    """A running service. pids: the processes that a request passes through, by their part in it."""

    url: str
    pids: dict[str, int]


def processor_seconds(pid: int) -> float:
    """What all threads of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextlib.contextmanager
def serving(weights: str, *options: str) -> Iterator[Service]:
    """``frcnn serve`` with these options on a free port, one thread for the network."""
    with socket.socket() as free, tempfile.TemporaryDirectory(prefix="scale", dir="/tmp") as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        settings = {
            "FRCNN_DEVICE": "cpu",
            "FRCNN_TORCH_THREADS": "1",
            "FRCNN_LOG_LEVEL": "error",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
        process = subprocess.Popen(
            [*command, "--weights", weights, *options],
            env=os.environ | settings | {"RAY_TMPDIR": folder, "RAY_SERVE_LOG_TO_STDERR": "0"},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process)
            yield Service(url, _rays(process.pid) if "--ray" in options else {"replica": process.pid})
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise TimeoutError(f"{url} was not ready in {START} s")


def _rays(driver: int) -> dict[str, int]:
    """The processes of Ray that descend from ``driver``, by the names that they give themselves."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                pid = int(entry.name)
                parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[pid] = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
    found = {}
    for pid, name in names.items():
        above = pid
        while above > 1 and above != driver:
            above = parents.get(above, 0)
        for part, word in (
            ("replica", "ServeReplica"),
            ("proxy", "ProxyActor"),
            ("controller", "ServeController"),
            ("raylet", "/raylet"),
        ):
            if above == driver and word in name:
                found[part] = pid
    assert found.keys() == {"replica", "proxy", "controller", "raylet"}, found
    return found


async def ask(url: str, path: str, body: bytes | None, clients: int, requests: int) -> tuple[list[float], list[Any]]:
    """Milliseconds of each request, and the answers, of clients that send one after another."""
    turns, times, answers = iter(range(requests)), [], []

    async def one(http: httpx.AsyncClient) -> None:
        for _ in turns:
            begun = time.perf_counter()
            answer = await (http.get(path) if body is None else http.post(path, content=body))
            times.append((time.perf_counter() - begun) * 1000)
            assert answer.status_code == 200, answer.text
            answers.append(answer)

    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        await asyncio.gather(*(one(http) for _ in range(clients)))
    return times, answers


def measure(service: Service, path: str, body: bytes | None, clients: int, requests: int) -> dict[str, Any]:
    """One turn: medians and rate, and processor time a request by process."""
    before = {part: processor_seconds(pid) for part, pid in service.pids.items()}
    begun = time.perf_counter()
    times, answers = asyncio.run(ask(service.url, path, body, clients, requests))
    wall = time.perf_counter() - begun
    used = {part: processor_seconds(pid) - before[part] for part, pid in service.pids.items()}
    turn: dict[str, Any] = {
        "median_ms": statistics.median(times),
        "per_s": requests / wall,
        "processor_ms": {part: seconds / requests * 1000 for part, seconds in used.items()},
        "processor_share": {part: seconds / wall for part, seconds in used.items()},
    }
    if body is not None:
        stages = [answer.json()["timings_ms"] for answer in answers]
        turn["answer_bytes"] = statistics.median(len(answer.content) for answer in answers)
        turn["decode_ms"] = statistics.median(stage["decode"] for stage in stages)
        turn["engine_ms"] = statistics.median(
            sum(stage[name] for name in ENGINE) / answer.json()["batch_size"]
            for stage, answer in zip(stages, answers, strict=True)
        )
    return turn


def summed_up(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure its median, least and most over the turns."""

    def three(values: list[float]) -> list[float]:
        return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]

    result: dict[str, Any] = {}
    for name, first in turns[0].items():
        if isinstance(first, dict):
            result[name] = {part: three([turn[name][part] for turn in turns]) for part in first}
        else:
            result[name] = three([turn[name] for turn in turns])
    return result


def overhead(weights: str, rounds: int, requests: int) -> dict[str, Any]:
    """Both services at once, asked by turns, so that what disturbs one disturbs the other."""
    body = pictures(1)[0]
    cases = [("/detect", body, 1), ("/detect", body, 8), ("/livez", None, 1), ("/livez", None, 8)]
    turns: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with serving(weights) as plain, serving(weights, "--ray") as ray:
        for number in range(-1, rounds):  # the first one is for warmth
            for path, sent, clients in cases:
                for name, service in (("plain", plain), ("ray", ray)):
                    count = max(clients, requests if path == "/detect" else 4 * requests)
                    turn = measure(service, path, sent, clients, count)
                    if number >= 0:
                        case = f"{path}, {clients} client{'s' if clients > 1 else ''}"
                        turns.setdefault(case, {}).setdefault(name, []).append(turn)
            print(f"round {number + 1} of {rounds}", flush=True)
    cases_ = {case: {name: summed_up(by) for name, by in services.items()} for case, services in turns.items()}
    return {"weights": weights, "rounds": rounds, "requests": requests, "picture_bytes": len(body), "cases": cases_}


def write(path: Path, command: str, result: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    head = {"date": date.today().isoformat(), "command": command, "cores": os.cpu_count()}
    path.write_text(json.dumps(head | {"load_average": os.getloadavg()[1]} | result, indent=1) + "\n")
    print(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=80, help="in a round, of each case")
    parser.add_argument("--ledger", action="store_true", help="kill a replica and a node under load, and nothing else")
    parser.add_argument("--clients", type=int, default=4, help="of the ledger")
    parser.add_argument("--answers", type=int, default=40, help="of the ledger, in each phase")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    command = "python -m benchmarks.scale_out"
    if given.ledger:
        result = run_ledger(given.clients, given.answers)
        command += f" --ledger --clients {given.clients} --answers {given.answers}"
        write(given.out or RESULTS / "ray-ledger.json", command, result)
        raise SystemExit(1 if result["lost"] or result["wrong"] else 0)
    command += f" --weights {given.weights} --rounds {given.rounds} --requests {given.requests}"
    write(given.out or RESULTS / "scale-out.json", command, overhead(given.weights, given.rounds, given.requests))


if __name__ == "__main__":
    main()
