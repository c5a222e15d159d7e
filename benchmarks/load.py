"""Many clients at once: is everybody answered, in which batches, and how long does it take?

    frcnn serve &
    python -m benchmarks.load --url http://127.0.0.1:8000 --clients 16 --requests 200

Sends pictures of mixed sizes and shapes made here, prints a table, and exits with 1 if a request was not answered 200.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import time
from collections import Counter

import httpx
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

# Cameras, screens, phones, a square, a panorama: width x height.
SIZES = ((640, 480), (480, 640), (1280, 720), (300, 300), (1024, 683), (90, 60), (1600, 400), (800, 1200))


def pictures(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of mixed sizes: smooth noise, which compresses about as photographs do."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


async def drive(url: str, clients: int, requests: int) -> list[tuple[int, int, float]]:
    """Status, batch size and seconds of every request, from ``clients`` that send one after another."""
    bodies = pictures(len(SIZES))
    turns = iter(range(requests))
    answers: list[tuple[int, int, float]] = []

    async def client(http: httpx.AsyncClient) -> None:
        for turn in turns:
            begun = time.perf_counter()
            body = bodies[turn % len(bodies)]
            answer = await http.post("/detect", content=body, headers={"Content-Type": "image/jpeg"})
            size = answer.json()["batch_size"] if answer.status_code == 200 else 0
            answers.append((answer.status_code, size, time.perf_counter() - begun))

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()

    begun = time.perf_counter()
    answers = asyncio.run(drive(arguments.url, arguments.clients, arguments.requests))
    wall = time.perf_counter() - begun
    statuses = Counter(status for status, _, _ in answers)
    sizes = Counter(size for _, size, _ in answers if size)
    seconds = sorted(second for _, _, second in answers)
    table = Table(title=f"{len(answers)} requests from {arguments.clients} clients in {wall:.1f} s")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_row("answered", ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())))
    table.add_row("batch size: requests", ", ".join(f"{size}: {count}" for size, count in sorted(sizes.items())))
    table.add_row("requests a second", f"{len(answers) / wall:.1f}")
    table.add_row("p50", f"{statistics.median(seconds) * 1000:.0f} ms")
    table.add_row("p95", f"{seconds[int(len(seconds) * 0.95)] * 1000:.0f} ms")
    Console().print(table)
    raise SystemExit(0 if statuses == {200: arguments.requests} else 1)


if __name__ == "__main__":
    main()
