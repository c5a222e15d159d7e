"""Does the service grow? Its resident memory over thousands of mixed requests through HTTP.

    python -m benchmarks.memory --requests 2000

Mixed: JPEG, PNG and WebP from 90 x 60 to 4032 x 3024, raw, as a form and in JSON, /detect, /detect/batch, /proposals
and pictures drawn on, and one in ten broken. Eight at a time, drawn from a seed. The first fifth is left out of the
verdict: pools fill, and torch meets new shapes.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks import pairs, report
from benchmarks.serve import free_port

SIZES = ((90, 60), (320, 240), (640, 480), (480, 640), (1024, 683), (1600, 400), (1920, 1080), (4032, 3024))
FORMATS = ("JPEG", "JPEG", "JPEG", "PNG", "WEBP")
ROUTES = ("/detect", "/detect", "/detect", "/detect/batch", "/proposals", "drawn")
MIB = 2**20


def pictures() -> list[bytes]:
    """Every size as JPEG, and those of up to two megapixels in the other formats too."""
    cat = Image.open(report.ROOT / "service/web/examples/chelsea.jpg").convert("RGB")
    made = []
    for width, height in SIZES:
        for format in sorted(set(FORMATS)):
            if format == "JPEG" or width * height < 2.5e6:
                file = io.BytesIO()
                cat.resize((width, height)).save(file, format, quality=85)
                made.append(file.getvalue())
    return made


def request(dice: random.Random, files: list[bytes]) -> dict[str, Any]:
    """What httpx shall send."""
    body, route = dice.choice(files), dice.choice(ROUTES)
    if dice.random() < 0.1:
        body = body[: dice.randrange(len(body))]
    headers = {"Accept": "image/jpeg"} if route == "drawn" else {}
    route = "/detect" if route == "drawn" else route
    if route == "/detect/batch":
        several = [("image", dice.choice(files[:12])) for _ in range(dice.randint(1, 4))]
        return {"url": route, "files": several}
    form = dice.random()
    if form < 0.5:
        return {"url": route, "content": body, "headers": headers}
    if form < 0.75:
        return {"url": route, "files": {"image": body}, "headers": headers}
    return {"url": route, "json": {"image": base64.b64encode(body).decode()}, "headers": headers}


async def drive(url: str, count: int, pid: int) -> tuple[Counter[int], list[tuple[int, float]]]:
    """Statuses, and (requests answered, MiB) as it went."""
    files, dice, statuses = pictures(), random.Random(4), Counter[int]()
    memory: list[tuple[int, float]] = []
    server, turns = psutil.Process(pid), iter(range(count))

    async def client(http: httpx.AsyncClient) -> None:
        for _ in turns:
            answer = await http.post(**request(dice, files))
            statuses[answer.status_code] += 1
            done = sum(statuses.values())
            if done % max(1, count // 100) == 0:
                memory.append((done, server.memory_info().rss / MIB))

    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        await asyncio.gather(*(client(http) for _ in range(8)))
    return statuses, memory


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a server, drive it, and end it."""
    machine, port = report.environment(arguments.device), free_port()
    settings = {
        "port": port,
        "weights": pairs.checkpoint(arguments.preset),
        "device": arguments.device,
        "torch_threads": arguments.threads,
        "log_level": "error",
        "timeout_ms": 600_000,
    }
    environment = os.environ | {f"FRCNN_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen([str(Path(sys.executable).with_name("frcnn")), "serve"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 300
        while True:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                sys.exit("The service does not start.")
            time.sleep(0.2)
        started = psutil.Process(process.pid).memory_info().rss / MIB
        begun = time.monotonic()
        statuses, memory = asyncio.run(drive(url, arguments.requests, process.pid))
        seconds = time.monotonic() - begun
    finally:
        report.stop(process)
    return {"machine": machine, "preset": arguments.preset} | verdict(statuses, memory, started, seconds)


def verdict(statuses: Counter[int], memory: list[tuple[int, float]], started: float, seconds: float) -> dict[str, Any]:
    """The figures: means of the second and the last fifth, and what a straight line through all but the first says."""
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
        "started_mib": round(started, 1),
        "second_fifth_mib": round(float(np.mean(second)), 1),
        "last_fifth_mib": round(float(np.mean(last)), 1),
        "most_mib": round(max(mib for _, mib in memory), 1),
        "mib_per_1000_requests": round(1000 * slope, 2),
    }


def tables(result: Mapping[str, Any]) -> list[report.Table]:
    """For the page and the terminal."""
    return [
        report.Table(
            f"{preset}: {run['requests']} mixed requests in {run['seconds']} s, answered "
            f"{', '.join(f'{count} x {status}' for status, count in run['statuses'].items())}. "
            f"{report.where(run['machine'])}.",
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="LITE", choices=pairs.PRESETS)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    result = report.load("memory")
    result[arguments.preset] = measure(arguments)
    report.save("memory", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
