"""Soak: minutes of mixed sizes, bursts, broken files, clients that vanish, and a device fault each minute.

    python -m benchmarks.soak --minutes 30 --weights lite-voc20

Every request has an id of its own; the server's log must hold exactly one line for each, with the status that the
client saw, and the counters in /metrics must be the number of those lines. Exits with 1 where that does not hold.
The faults come in through ``create_app``'s ``detector_factory``: nothing in the service knows of them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results"
SIZES = ((64, 48), (320, 240), (480, 640), (640, 480), (1024, 768), (300, 900), (1600, 300))
FAULTS = ("error", "memory", "poison")


# ------------------------------------------------------------------------------------------------ the server's side
class Chaos:
    """A detector that fails when told to: ``fault`` is the next call's, and gone after it."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self.fault = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def detect(self, images: Sequence[Any], options: Sequence[Any]) -> Any:
        fault = self.fault
        if fault == "poison":  # fails until its batch is down to one picture, which is then lost
            self.fault = "" if len(images) == 1 else fault
            raise RuntimeError("soak: a picture that the device cannot stand")
        self.fault = ""
        if fault == "memory":
            raise RuntimeError("soak: out of memory")
        if fault:
            raise RuntimeError("soak: the device failed once")
        return self._detector.detect(images, options)


def serve(weights: str) -> None:
    """The server as the command line runs it, with ``Chaos`` around its detector; a line on stdin names a fault."""
    import threading

    from model.detector import Detector
    from service.app import create_app, load_detector
    from service.logs import configure_logging
    from service.server import Server
    from service.settings import load_settings

    settings = load_settings(port=0, weights=weights, torch_threads=1, max_queue=32)
    chaos: list[Chaos] = []

    def factory(_: Any) -> Chaos:
        detector = Detector.random("LITE") if weights == "random" else load_detector(settings)
        chaos.append(Chaos(detector))
        return chaos[0]

    app = create_app(settings, detector_factory=factory)
    configure_logging("json", "info")
    server = Server(app, settings)
    startup = server.startup

    async def announce(*args: Any, **kwargs: Any) -> None:
        await startup(*args, **kwargs)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)

    def listen() -> None:
        for line in sys.stdin:
            chaos[0].fault = line.strip()

    server.startup = announce  # type: ignore[method-assign]
    threading.Thread(target=listen, daemon=True).start()
    server.run()
    sys.exit(server.exit_code)


# ----------------------------------------------------------------------------------------------- the clients' side
@dataclass
class Ledger:
    """What the clients sent and saw. seen: status by id; None for who hung up without waiting."""

    seen: dict[str, int | None] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MiB
    faults: Counter[str] = field(default_factory=Counter)


class Clients:
    """The load: ``pace`` requests a second on average, in bursts, until the time is over."""

    def __init__(self, url: str, seconds: float, pace: float, faults: Any) -> None:
        self.url, self.seconds, self.pace, self.faults = url, seconds, pace, faults
        self.random = random.Random(6)
        self.bodies = [picture(size, seed) for seed, size in enumerate(SIZES)]
        self.ledger = Ledger()
        self.started = time.monotonic()

    async def run(self, pid: int) -> Ledger:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=20)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=60, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            watching = group.create_task(self._watch(pid))
            faulting = group.create_task(self._fault())
            requests: set[asyncio.Task[None]] = set()
            while time.monotonic() - self.started < self.seconds:
                burst = self.random.choice((1, 1, 1, 2, 4, 60 if self.random.random() < 0.02 else 8))
                for _ in range(burst):
                    task = group.create_task(self._request(client))
                    requests.add(task)
                    task.add_done_callback(requests.discard)
                await asyncio.sleep(self.random.expovariate(self.pace / burst))
            await asyncio.gather(*requests)
            watching.cancel()
            faulting.cancel()
        return self.ledger

    async def _request(self, client: httpx.AsyncClient) -> None:
        name = f"soak-{len(self.ledger.seen)}"
        self.ledger.seen[name] = None
        body, headers, kind = self.random.choice(self.bodies), {"X-Request-ID": name}, self.random.random()
        if kind < 0.05:
            await self._vanish(body, name)
            return
        if kind < 0.12:
            body = body[: self.random.randrange(len(body))]
        elif kind < 0.15:
            headers["X-Request-Timeout-Ms"] = "30"
        try:
            answer = await client.post("/detect", content=body, headers=headers)
            self.ledger.seen[name] = answer.status_code
        except httpx.HTTPError as error:
            self.ledger.failures.append(f"{name}: {type(error).__name__}: {error}")

    async def _vanish(self, body: bytes, name: str) -> None:
        url = httpx.URL(self.url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nX-Request-ID: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[: self.random.choice((len(body) // 2, len(body)))])
        await writer.drain()
        await asyncio.sleep(self.random.random() * 0.2)
        writer.close()

    async def _watch(self, pid: int) -> None:
        while True:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            self.ledger.memory.append((time.monotonic() - self.started, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            await asyncio.sleep(5)

    async def _fault(self) -> None:
        while True:
            for fault in FAULTS:
                await asyncio.sleep(min(60.0, self.seconds / 4))
                self.faults.write(f"{fault}\n")
                self.faults.flush()
                self.ledger.faults[fault] += 1


def picture(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG of coarse noise, ``size`` = (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 16 + 1, size[0] // 16 + 1, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR).save(file, "JPEG", quality=85)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------ the verdict
def soak(seconds: float, weights: str, pace: float) -> dict[str, Any]:
    """Run it, and return the ledger; ``wrong`` in it lists what does not hold."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "benchmarks.soak", "--serve", "--weights", weights]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            if not port:
                log.seek(0)
                raise SystemExit(f"The server did not start: {log.read()[-2000:]}")
            url = f"http://127.0.0.1:{port}"
            ledger = asyncio.run(Clients(url, seconds, pace, process.stdin).run(process.pid))
            time.sleep(1)
            counters = requests_counted(httpx.get(f"{url}/metrics").text)
            process.terminate()
            code = process.wait(60)
        finally:
            process.kill()
            process.communicate()
        log.seek(0)
        lines = [json.loads(line) for line in log if line.startswith("{")]
    return verdict(ledger, lines, counters, code, seconds, weights)


def requests_counted(text: str) -> Counter[str]:
    """Requests of /detect by status, as /metrics counts them."""
    found = re.findall(r'^frcnn_requests_total\{route="/detect",status="(\d+)"\} (\S+)', text, re.MULTILINE)
    return Counter({status: int(float(count)) for status, count in found})


def verdict(
    ledger: Ledger, lines: list[dict[str, Any]], counters: Counter[str], code: int, seconds: float, weights: str
) -> dict[str, Any]:
    """Compare the three books: the clients', the log's and the counters'."""
    logged: dict[str, list[int]] = {}
    for line in lines:
        if line["message"] == "request" and line.get("route") == "/detect":
            logged.setdefault(line["request_id"], []).append(line["status"])
    by_log = Counter(str(status) for statuses in logged.values() for status in statuses)
    answered = {name: status for name, status in ledger.seen.items() if status is not None}
    lost = [name for name in ledger.seen if name not in logged]
    twice = [name for name, statuses in logged.items() if len(statuses) > 1]
    differ = [name for name, status in answered.items() if logged.get(name) != [status]]
    third = max(1, len(ledger.memory) // 3)
    middle, last = ([mib for _, mib in part] for part in (ledger.memory[third : 2 * third], ledger.memory[2 * third :]))
    memory = {
        "start": ledger.memory[0][1],
        "middle_third_mean": sum(middle) / max(1, len(middle)),
        "last_third_mean": sum(last) / max(1, len(last)),
        "end": ledger.memory[-1][1],
        "most": max(mib for _, mib in ledger.memory),
    }
    wrong = {
        "requests without a line in the log": lost,
        "requests with several": twice,
        "requests whose client saw another status": differ,
        "clients that got no answer": ledger.failures,
        "counters that differ from the log": [] if by_log == counters else [f"{dict(by_log)} {dict(counters)}"],
        "exit code": [] if code == 0 else [str(code)],
    }
    return {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.soak --minutes {seconds / 60:g} --weights {weights}",
        "seconds": seconds,
        "sent": len(ledger.seen),
        "hung_up": len(ledger.seen) - len(answered) - len(ledger.failures),
        "answered": dict(sorted(Counter(map(str, answered.values())).items())),
        "logged": dict(sorted(by_log.items())),
        "lost": len(lost),
        "faults": dict(ledger.faults),
        "memory_mib": {name: round(mib, 1) for name, mib in memory.items()},
        "wrong": {name: found[:5] for name, found in wrong.items() if found},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--weights", default="lite-voc20", help="as FRCNN_WEIGHTS, or `random`")
    parser.add_argument("--pace", type=float, default=6, help="requests a second, on average")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.weights)
        return
    result = soak(arguments.minutes * 60, arguments.weights, arguments.pace)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name:10} {value}")
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
