"""The overload curve: what is answered, what is refused and how long it takes, from half to four times the capacity.

    python -m benchmarks.overload --seconds 15 --weights lite-voc20

Starts a server of its own, measures its capacity with more clients than it has places in a batch, and then sends
requests at a fixed rate whether or not earlier ones have been answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import pictures

RESULTS = Path(__file__).parent / "results"
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


async def send(client: httpx.AsyncClient, body: bytes) -> tuple[int, float, int]:
    """Status, seconds, and the Retry-After (0 where there is none) of one request."""
    begun = time.perf_counter()
    answer = await client.post("/detect", content=body)
    return answer.status_code, time.perf_counter() - begun, int(answer.headers.get("retry-after", 0))


async def capacity(client: httpx.AsyncClient, bodies: list[bytes], clients: int, seconds: float) -> float:
    """Requests a second that are answered to ``clients`` that send one after another."""
    until, done = time.perf_counter() + seconds, 0

    async def one(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            status, _, _ = await send(client, bodies[number % len(bodies)])
            done += status == 200

    begun = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(clients)))
    return done / (time.perf_counter() - begun)


async def offer(client: httpx.AsyncClient, bodies: list[bytes], rate: float, seconds: float) -> list[Any]:
    """Send at ``rate`` for so long, and wait for all answers."""
    begun, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(begun + number / rate - time.perf_counter())
        tasks.append(asyncio.create_task(send(client, bodies[number % len(bodies)])))
    return await asyncio.gather(*tasks)


def row(load: float, rate: float, seconds: float, answers: list[tuple[int, float, int]]) -> dict[str, Any]:
    """One line of the table."""
    statuses = Counter(status for status, _, _ in answers)
    good = sorted(spent for status, spent, _ in answers if status == 200)
    refused = sorted(spent for status, spent, _ in answers if status == 429)
    told = [wait for status, _, wait in answers if status == 429]

    def part(values: list[float], share: float) -> float:
        return round(values[min(len(values) - 1, int(share * len(values)))], 3) if values else 0.0

    return {
        "load": load,
        "offered_per_s": round(rate, 1),
        "answered_per_s": round(len(good) / (seconds + (part(good, 1) if load > 1 else 0)), 1),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "p50_s": part(good, 0.5),
        "p95_s": part(good, 0.95),
        "max_s": part(good, 1),
        "refused_p95_s": part(refused, 0.95),
        "retry_after_s": [min(told), max(told)] if told else [],
    }


async def measure(url: str, seconds: float, queue: int) -> dict[str, Any]:
    bodies = pictures(8)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=1000)) as client:
        await capacity(client, bodies, 16, 3)
        most = await capacity(client, bodies, 16, seconds)
        rows = []
        for load in LOADS:
            rows.append(row(load, load * most, seconds, await offer(client, bodies, load * most, seconds)))
            print(rows[-1], flush=True)
    return {"capacity_per_s": round(most, 1), "max_queue": queue, "bound_s": round(queue / most, 2), "curve": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="for each load")
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--queue", type=int, default=64, help="FRCNN_MAX_QUEUE")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--out", type=Path, default=RESULTS / "overload.json")
    arguments = parser.parse_args()
    settings = {"MAX_QUEUE": arguments.queue, "WEIGHTS": arguments.weights, "TORCH_THREADS": 1, "LOG_LEVEL": "error"}
    environment = os.environ | {f"FRCNN_{name}": str(value) for name, value in settings.items()}
    program = "from service.cli import app; app()"
    command = [sys.executable, "-c", program, "serve", "--port", str(arguments.port)]
    process = subprocess.Popen(command, env=environment)
    url = f"http://127.0.0.1:{arguments.port}"
    try:
        for _ in range(300):
            time.sleep(0.2)
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, "the server did not start"
        result = asyncio.run(measure(url, arguments.seconds, arguments.queue))
    finally:
        process.terminate()
        process.wait(60)
    command_line = f"python -m benchmarks.overload --seconds {arguments.seconds:g} --weights {arguments.weights}"
    result = {"date": date.today().isoformat(), "command": command_line, "cores": os.cpu_count()} | result
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"capacity {result['capacity_per_s']}/s, queue {result['max_queue']}: a wait of {result['bound_s']} s at most"
    )


if __name__ == "__main__":
    main()
