"""Measure the service's resident memory over thousands of mixed requests.

    python -m benchmarks.serving.memory --requests 2000

Mixed: JPEG, PNG and WebP from 90 x 60 to 4032 x 3024, raw, as a form and in JSON, /detect, /detect/batch, /proposals
and images with boxes drawn on them, and one in ten broken. Eight at a time, drawn from a seed. The first fifth is left
out of the summary: pools fill, and torch meets new shapes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.lib import machine, models, results
from benchmarks.lib.images import cat, encode
from benchmarks.lib.service import running_service

SIZES = ((90, 60), (320, 240), (640, 480), (480, 640), (1024, 683), (1600, 400), (1920, 1080), (4032, 3024))
FORMATS = ("JPEG", "JPEG", "JPEG", "PNG", "WEBP")
ROUTES = ("/detect", "/detect", "/detect", "/detect/batch", "/proposals", "drawn")
MIB = 2**20


def files() -> list[bytes]:
    """Return the cat in every size as JPEG, and in sizes of up to two megapixels in the other formats too."""
    encoded = []
    for width, height in SIZES:
        for format in sorted(set(FORMATS)):
            if format == "JPEG" or width * height < 2.5e6:
                encoded.append(encode(cat().resize((width, height)), format))
    return encoded


def draw_request(rng: random.Random, files: list[bytes]) -> dict[str, Any]:
    """Return the arguments of one ``httpx`` request."""
    body, route = rng.choice(files), rng.choice(ROUTES)
    if rng.random() < 0.1:
        body = body[: rng.randrange(len(body))]
    headers = {"Accept": "image/jpeg"} if route == "drawn" else {}
    route = "/detect" if route == "drawn" else route
    if route == "/detect/batch":
        parts = [("image", rng.choice(files[:12])) for _ in range(rng.randint(1, 4))]
        return {"url": route, "files": parts}
    form = rng.random()
    if form < 0.5:
        return {"url": route, "content": body, "headers": headers}
    if form < 0.75:
        return {"url": route, "files": {"image": body}, "headers": headers}
    return {"url": route, "json": {"image": base64.b64encode(body).decode()}, "headers": headers}


async def drive(url: str, count: int, pid: int) -> tuple[Counter[int], list[tuple[int, float]]]:
    """Send the requests; return the count of each status, and (requests answered, MiB) as it went."""
    bodies, rng, statuses = files(), random.Random(4), Counter[int]()
    memory: list[tuple[int, float]] = []
    server, turns = psutil.Process(pid), iter(range(count))

    async def client(http: httpx.AsyncClient) -> None:
        for _ in turns:
            response = await http.post(**draw_request(rng, bodies))
            statuses[response.status_code] += 1
            done = sum(statuses.values())
            if done % max(1, count // 100) == 0:
                memory.append((done, server.memory_info().rss / MIB))

    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        await asyncio.gather(*(client(http) for _ in range(8)))
    return statuses, memory


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a service, send it the requests, and end it."""
    about = machine.describe(arguments.device)
    settings = {
        "weights": models.checkpoint(arguments.preset),
        "device": arguments.device,
        "torch_threads": arguments.threads,
        "timeout_ms": 600_000,
    }
    with running_service(settings) as service:
        pid = service.process.pid
        ready_mib = psutil.Process(pid).memory_info().rss / MIB
        begin = time.monotonic()
        statuses, memory = asyncio.run(drive(service.url, arguments.requests, pid))
        seconds = time.monotonic() - begin
    return {"machine": about, "preset": arguments.preset} | summarise(statuses, memory, ready_mib, seconds)


def summarise(
    statuses: Counter[int], memory: list[tuple[int, float]], ready_mib: float, seconds: float
) -> dict[str, Any]:
    """Return the means of the second and the last fifth, and the slope of a line through all but the first."""
    total = memory[-1][0]
    settled = [(done, mib) for done, mib in memory if done > total / 5]
    slope = float(np.polyfit(*zip(*settled, strict=True), 1)[0]) if len(settled) > 1 else 0.0
    second = [mib for done, mib in settled if done <= 2 * total / 5]
    last = [mib for done, mib in settled if done > 4 * total / 5]
    return {
        "requests": sum(statuses.values()),
        "seconds": round(seconds),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "memory_mib": [(done, round(mib, 1)) for done, mib in memory],
        "started_mib": round(ready_mib, 1),
        "second_fifth_mib": round(float(np.mean(second)), 1),
        "last_fifth_mib": round(float(np.mean(last)), 1),
        "most_mib": round(max(mib for _, mib in memory), 1),
        "mib_per_1000_requests": round(1000 * slope, 2),
    }


def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return a table for each preset."""
    return [
        results.Table(
            f"{preset}: {run['requests']} mixed requests in {run['seconds']} s, answered "
            f"{', '.join(f'{count} x {status}' for status, count in run['statuses'].items())}. "
            f"{machine.sentence(run['machine'])}.",
            ("resident memory", "MiB"),
            [
                ("when it was ready", f"{run['started_mib']}"),
                ("mean of the second fifth", f"{run['second_fifth_mib']}"),
                ("mean of the last fifth", f"{run['last_fifth_mib']}"),
                ("most", f"{run['most_mib']}"),
                (
                    "growth in 1,000 requests, by a line through all but the first fifth",
                    f"{run['mib_per_1000_requests']:+}",
                ),
            ],
        )
        for preset, run in result.items()
    ]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="LITE", choices=models.PRESETS)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    result = results.load("memory")
    result[arguments.preset] = measure(arguments)
    results.save("memory", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
