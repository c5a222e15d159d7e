"""Run the service for minutes on mixed sizes, bursts, broken files, vanishing clients and a device fault a minute.

    python -m benchmarks.serving.soak --minutes 30 --weights lite-voc20

Every request has an id of its own; the server's log must hold exactly one line for each, with the status that the
client saw, and the counters in /metrics must be the number of those lines. Once it is warm, its memory must stay as it
is. Exits with 1 where that does not hold. The faults come in through ``create_app``'s ``detector_factory``: nothing in
the service knows of them.
"""

from __future__ import annotations

import argparse
import asyncio
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

from benchmarks.lib import results
from benchmarks.lib.images import noise_jpeg
from benchmarks.lib.markers import fill_file
from benchmarks.lib.service import stop

PAGE = results.ROOT / "docs/overload.md"
SIZES = ((64, 48), (320, 240), (480, 640), (640, 480), (1024, 768), (300, 900), (1600, 300))
FAULTS = ("error", "memory", "poison")
WARM = 1 / 3  # of the time: by then the largest batches have been through, and the heap has grown to hold them
GROWTH = 0.05  # of the memory once warm: more is a leak


# -------------------------------------------------------------------------------------------------------- the server
class FaultyDetector:
    """A detector that fails when told to: ``fault`` is the next call's, and is cleared by it."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector
        self.fault = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def detect(self, images: Sequence[Any], options: Sequence[Any]) -> Any:
        fault = self.fault
        if fault == "poison":  # fails until its batch is down to one image, which is then lost
            self.fault = "" if len(images) == 1 else fault
            raise RuntimeError("soak: an image that the device cannot compute")
        self.fault = ""
        if fault == "memory":
            raise RuntimeError("soak: out of memory")
        if fault:
            raise RuntimeError("soak: the device failed once")
        return self._detector.detect(images, options)


def serve(weights: str) -> None:
    """Run the server as the command line does, with a ``FaultyDetector``; a line on stdin names its next fault."""
    import threading

    from model.detector import Detector
    from service.app import create_app
    from service.inference.detector import load_detector
    from service.server.logging import configure_logging
    from service.server.uvicorn_server import Server
    from service.settings import load_settings

    settings = load_settings(port=0, weights=weights, torch_threads=1, max_queue=32)
    detectors: list[FaultyDetector] = []

    def factory(_: Any) -> FaultyDetector:
        detector = Detector.random("LITE") if weights == "random" else load_detector(settings)
        detectors.append(FaultyDetector(detector))
        return detectors[0]

    app = create_app(settings, detector_factory=factory)
    configure_logging("json", "info")
    server = Server(app, settings)
    startup = server.startup

    async def announce(*args: Any, **kwargs: Any) -> None:
        await startup(*args, **kwargs)
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)

    def listen() -> None:
        for line in sys.stdin:
            detectors[0].fault = line.strip()

    server.startup = announce  # type: ignore[method-assign]
    threading.Thread(target=listen, daemon=True).start()
    server.run_until_exit()


# ------------------------------------------------------------------------------------------------------- the clients
@dataclass
class Ledger:
    """What the clients sent and saw.

    statuses: by request id; None for a client that hung up without waiting. memory: (seconds, MiB).
    """

    statuses: dict[str, int | None] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)


class Clients:
    """Send ``pace`` requests a second on average, in bursts, until the time is over."""

    def __init__(self, url: str, seconds: float, pace: float, faults: Any) -> None:
        self.url, self.seconds, self.pace, self.faults = url, seconds, pace, faults
        self.random = random.Random(6)
        self.bodies = [noise_jpeg(*size, seed) for seed, size in enumerate(SIZES)]
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
        name = f"soak-{len(self.ledger.statuses)}"
        self.ledger.statuses[name] = None
        body, headers, kind = self.random.choice(self.bodies), {"X-Request-ID": name}, self.random.random()
        if kind < 0.05:
            await self._vanish(body, name)
            return
        if kind < 0.12:
            body = body[: self.random.randrange(len(body))]
        elif kind < 0.15:
            headers["X-Request-Timeout-Ms"] = "30"
        try:
            response = await client.post("/detect", content=body, headers=headers)
            self.ledger.statuses[name] = response.status_code
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
            await asyncio.sleep(min(5.0, self.seconds / 30))

    async def _fault(self) -> None:
        while True:
            for fault in FAULTS:
                await asyncio.sleep(min(60.0, self.seconds / 4))
                self.faults.write(f"{fault}\n")
                self.faults.flush()
                self.ledger.faults[fault] += 1


# --------------------------------------------------------------------------------------------------------- the result
def soak(seconds: float, weights: str, pace: float, growth: float = GROWTH) -> dict[str, Any]:
    """Run it and return the result; its ``wrong`` lists what does not hold. growth: of memory, see ``GROWTH``."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "benchmarks.serving.soak", "--serve", "--weights", weights]
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
            metrics = final_metrics(url)
            model = httpx.get(f"{url}/model").json()
            code = stop(process)
        finally:
            process.kill()
            process.communicate()
        log.seek(0)
        lines = [json.loads(line) for line in log if line.startswith("{")]
    result = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.serving.soak --minutes {seconds / 60:g} --weights {weights} --pace {pace:g}",
        "detector": {name: model[name] for name in ("name", "precision", "device")},
        "seconds": seconds,
    }
    return result | compare(ledger, lines, metrics, code, growth)


def tables(result: dict[str, Any]) -> list[results.Table]:
    """Return the table, for the terminal and for docs/overload.md."""
    detector, memory = result["detector"], result["memory_mib"]
    answered = ", ".join(f"{count} x {status}" for status, count in result["answered"].items())
    rows = [
        ("sent", f"{result['sent']}"),
        ("answered", answered),
        ("hung up without waiting", f"{result['hung_up']}"),
        ("lost", f"{result['lost']}"),
        ("faults of the device", ", ".join(f"{count} x {fault}" for fault, count in result["faults"].items())),
        ("memory when ready, MiB", f"{memory['start']:.0f}"),
        ("after a third of the time", f"{memory['after_warm_up']:.0f}"),
        ("at the end", f"{memory['end']:.0f}"),
        ("at most", f"{memory['most']:.0f}"),
        ("what did not hold", ", ".join(result["wrong"]) or "nothing"),
    ]
    title = f"`{result['command']}`, {result['date']}: {detector['name']}, {detector['precision']}."
    return [results.Table(title, ("what", "result"), rows)]


def final_metrics(url: str) -> str:
    """Return /metrics once the last requests have ended."""
    for _ in range(300):
        text = httpx.get(f"{url}/metrics").text
        if "frcnn_inflight 1.0" in text:  # this one itself
            break
        time.sleep(0.1)
    return text


def counted(text: str) -> tuple[Counter[str], Counter[str]]:
    """Return /detect's requests by status from /metrics, and the other metrics that must agree with them."""
    samples = re.findall(r'^frcnn_requests_total\{route="/detect",status="(\d+)"\} (\S+)', text, re.MULTILINE)
    requests = Counter({status: int(float(count)) for status, count in samples})
    names = ("frcnn_rejected_total", "frcnn_detections_per_image_count", "frcnn_queue_depth", "frcnn_inflight")
    sums = {name: re.findall(rf"^{name}(?:{{.*}})? (\S+)", text, re.MULTILINE) for name in names}
    return requests, Counter({name: int(sum(map(float, values))) for name, values in sums.items()})


def compare(ledger: Ledger, lines: list[dict[str, Any]], metrics: str, code: int, growth: float) -> dict[str, Any]:
    """Compare what the clients saw, what the log says and what the counters say, and check the memory."""
    logged: dict[str, list[int]] = {}
    for line in lines:
        if line["message"] == "request" and line.get("route") == "/detect":
            logged.setdefault(line["request_id"], []).append(line["status"])
    by_log = Counter(str(status) for statuses in logged.values() for status in statuses)
    answered = {name: status for name, status in ledger.statuses.items() if status is not None}
    lost = [name for name in ledger.statuses if name not in logged]
    twice = [name for name, statuses in logged.items() if len(statuses) > 1]
    differ = [name for name, status in answered.items() if logged.get(name) != [status]]
    requests, sums = counted(metrics)
    refused = sum(count for status, count in by_log.items() if status >= "400")
    expected = Counter(
        {
            "frcnn_rejected_total": refused,
            "frcnn_detections_per_image_count": by_log["200"],
            "frcnn_queue_depth": 0,
            "frcnn_inflight": 1,
        }
    )
    memory = memory_of(ledger)
    grew = memory["last_third_mean"] - memory["middle_third_mean"]
    wrong = {
        "requests without a line in the log": lost,
        "requests with several": twice,
        "requests whose client saw another status": differ,
        "clients that got no answer": ledger.failures,
        "requests counted otherwise than logged": [] if by_log == requests else [f"{by_log} {requests}"],
        "other counters that do not add up": [] if expected == sums else [f"{dict(expected)} {dict(sums)}"],
        "memory that grew once warm, MiB": [f"{grew:.0f}"] if grew > growth * memory["middle_third_mean"] else [],
        "exit code": [] if code == 0 else [str(code)],
    }
    return {
        "sent": len(ledger.statuses),
        "hung_up": len(ledger.statuses) - len(answered) - len(ledger.failures),
        "answered": dict(sorted(Counter(map(str, answered.values())).items())),
        "logged": dict(sorted(by_log.items())),
        "counted": dict(sorted(requests.items())),
        "lost": len(lost),
        "faults": dict(ledger.faults),
        "memory_mib": memory,
        "memory_mib_by_minute": {
            f"{seconds / 60:.1f}": round(mib) for seconds, mib in ledger.memory[:: max(1, len(ledger.memory) // 30)]
        },
        "wrong": {name: examples[:5] for name, examples in wrong.items() if examples},
    }


def memory_of(ledger: Ledger) -> dict[str, float]:
    """Return MiB resident when ready and before the first image, once warm, and at the end."""
    mib = [value for _, value in ledger.memory]
    warm = int(len(mib) * WARM)
    last = mib[-max(1, len(mib) // 3) :]
    middle = mib[warm : len(mib) - len(last)] or last
    figures = {
        "start": mib[0],
        "after_warm_up": mib[warm],
        "middle_third_mean": sum(middle) / len(middle),
        "last_third_mean": sum(last) / len(last),
        "end": mib[-1],
        "most": max(mib),
    }
    return {name: round(value, 1) for name, value in figures.items()}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--weights", default="lite-voc20", help="as FRCNN_WEIGHTS, or `random`")
    parser.add_argument("--pace", type=float, default=2, help="requests a second, on average")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "soak.json")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.weights)
        return
    result = soak(arguments.minutes * 60, arguments.weights, arguments.pace)
    results.write_json(arguments.out, result)
    for table in tables(result):
        table.print()
        if arguments.out.parent == results.RESULTS:
            fill_file(PAGE, "soak", table.markdown())
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
