"""Measure what a flood of clients that ignore Retry-After leaves of the useful answers.

    python -m benchmarks.serving.flood --seconds 10 --rounds 2

Starts a service of its own. A process beside it holds 8 to 1,000 connections, each of which sends the same photograph
(640 x 480, about 60 KB) again as soon as it is answered or refused. "keep" sends it over the same connection,
"reconnect" opens another after each refusal, and "heed" waits for the seconds in Retry-After first. Odd rounds go
through the steps forwards, even ones backwards. Where other programs take a part of the processor, the answers for each
second of the service's processor time are what to compare. Writes benchmarks/results/flood.json.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil

from benchmarks.lib import machine, results
from benchmarks.lib.images import cat_jpeg
from benchmarks.lib.markers import fill_file
from benchmarks.lib.service import running_service

Behaviour = Literal["keep", "reconnect", "heed"]

CONNECTIONS = (8, 32, 70, 100, 200, 1000)
HEEDING = (16, 64)
GOAL = 0.9  # of the best rate of answers, at 200 and at 1,000 connections


@dataclass
class Counts:
    """What the connections of one step have received while it is counted.

    seconds: of each answer, from the first byte sent. refused_seconds: the same of each refusal.
    """

    counting: bool = False
    answered: list[float] = field(default_factory=list)  # when each answer came, also while nothing is counted
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0  # connections that ended with a request unanswered
    seconds: list[float] = field(default_factory=list)
    refused_seconds: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection, which sends ``request`` until ``stop``. It reads no more of a response than it must."""

    def __init__(self, port: int, request: bytes, behaviour: Behaviour, counts: Counts) -> None:
        self._address = ("127.0.0.1", port)
        self._request = request
        self._behaviour = behaviour
        self._counts = counts
        self._stopped = False
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[Any] | None = None
        self._missing = 0  # bytes of the response's body
        self._sent = 0.0
        self._status = 0
        self._close = False
        self._delay = 0.0

    def connect(self) -> None:
        """Open a connection, and again until there is one."""
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    def stop(self) -> None:
        """Send nothing more, and close the connection."""
        self._stopped = True
        if self._transport is not None:
            self._transport.abort()

    async def _connect(self) -> None:
        while not self._stopped:
            try:
                await asyncio.get_running_loop().create_connection(lambda: self, *self._address)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                return

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        if self._stopped or self._transport is None or self._transport.is_closing():
            return
        self._status = 0
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._status:  # the service writes a whole head at once
            head, _, data = data.partition(b"\r\n\r\n")
            self._read_head(head.lower())
        self._missing -= len(data)
        if not self._missing:
            self._respond()

    def _read_head(self, head: bytes) -> None:
        self._status = int(head[9:12])
        self._missing = int(_value(head, b"content-length") or 0)
        self._close = _value(head, b"connection") == b"close"
        heeds = self._behaviour == "heed" and self._status in (429, 503)
        self._delay = float(_value(head, b"retry-after") or 1) if heeds else 0.0

    def _respond(self) -> None:
        """Count the response, and send the next request."""
        assert self._transport is not None
        if self._status == 200:
            self._counts.answered.append(time.perf_counter())
        if self._counts.counting:
            self._counts.statuses[self._status] += 1
            seconds = self._counts.seconds if self._status == 200 else self._counts.refused_seconds
            seconds.append(time.perf_counter() - self._sent)
        refused = self._status != 200
        self._sent = 0.0
        if self._close or (refused and self._behaviour == "reconnect"):
            self._transport.close()  # connection_lost opens another
        elif self._delay:
            asyncio.get_running_loop().call_later(self._delay, self._send)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._stopped:
            return
        if self._sent and self._counts.counting:
            self._counts.lost += 1
        self.connect()


def _value(head: bytes, name: bytes) -> bytes | None:
    """Return the value of a header of a response's head in lower case."""
    _, found, rest = head.partition(b"\r\n%b: " % name)
    return rest.partition(b"\r\n")[0] if found else None


def load(
    port: int, server: int, request: bytes, connections: int, behaviour: Behaviour, warm_up: float, seconds: float
) -> dict[str, Any]:
    """Send ``request`` over so many connections, and return what came back in ``seconds`` after ``warm_up``.

    server: the process id of the service, whose processor time is counted with its children's.
    """
    return asyncio.run(_load(port, server, request, connections, behaviour, warm_up, seconds))


async def _load(
    port: int, server: int, request: bytes, connections: int, behaviour: Behaviour, warm_up: float, seconds: float
) -> dict[str, Any]:
    counts = Counts()
    clients = [Client(port, request, behaviour, counts) for _ in range(connections)]
    for client in clients:
        client.connect()
        await asyncio.sleep(0.001)  # so that the queue of connections to accept does not overflow
    await asyncio.sleep(warm_up)
    begin, server_cpu, own_cpu, all_cpu = time.perf_counter(), cpu_seconds(server), time.process_time(), busy_seconds()
    counts.counting = True
    await asyncio.sleep(seconds)
    counts.counting = False
    elapsed = time.perf_counter() - begin
    server_cpu, own_cpu = cpu_seconds(server) - server_cpu, time.process_time() - own_cpu
    await _wait_for_answer(counts, begin + elapsed)
    others_cpu = max(0.0, busy_seconds() - all_cpu - server_cpu - own_cpu)
    for client in clients:
        client.stop()
    await asyncio.sleep(0.1)
    answered = counts.statuses[200]
    return {
        "answered_per_s": answer_rate(counts.answered, begin, begin + elapsed),
        "refused_per_s": (sum(counts.statuses.values()) - answered) / elapsed,
        "statuses": {str(status): count for status, count in sorted(counts.statuses.items())},
        "lost": counts.lost,
        "answered_p50_s": _quantile(counts.seconds, 0.5),
        "refused_p50_s": _quantile(counts.refused_seconds, 0.5),
        "refused_p95_s": _quantile(counts.refused_seconds, 0.95),
        "server_cpu_per_s": server_cpu / elapsed,
        "clients_cpu_per_s": own_cpu / elapsed,
        "others_cpu_per_s": others_cpu / elapsed,
        "answers_per_cpu_s": answered / max(1e-9, server_cpu),
        "server_mib": resident_mib(server),
    }


async def _wait_for_answer(counts: Counts, after: float) -> None:
    """Wait until an answer has come after that time, for at most 15 seconds."""
    while time.perf_counter() < after + (15 if counts.answered else 0) and not (
        counts.answered and counts.answered[-1] >= after
    ):
        await asyncio.sleep(0.05)


def answer_rate(answered: Sequence[float], begin: float, end: float) -> float:
    """Return the answers a second, from the first after ``begin`` to the first after ``end``.

    Answers come in batches. So the time begins and ends with a batch; otherwise one batch more or less would count.
    """
    first = next((moment for moment in answered if moment >= begin), None)
    last = next((moment for moment in answered if moment >= end), None)
    if first is None or last is None or last <= first:
        return 0.0
    return sum(first <= moment < last for moment in answered) / (last - first)


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process and its children so far."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return float(sum(sum(process.cpu_times()[:2]) for process in family))


def busy_seconds() -> float:
    """Return the processor seconds of the whole machine so far."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def resident_mib(pid: int) -> int:
    """Return the resident memory of a process, in MiB."""
    return int(psutil.Process(pid).memory_info().rss) >> 20


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def http_request(body: bytes, *headers: str) -> bytes:
    """Return the bytes of POST /detect with ``body``."""
    lines = ["POST /detect HTTP/1.1", "Host: 127.0.0.1", "Content-Type: image/jpeg", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the service and measure every step ``--rounds`` times."""
    steps: list[tuple[Behaviour, int]] = []
    for behaviour in arguments.behaviours:
        numbers = arguments.connections or (HEEDING if behaviour == "heed" else CONNECTIONS)
        steps += [(behaviour, number) for number in numbers]
    request = http_request(cat_jpeg())
    runs: dict[tuple[Behaviour, int], list[dict[str, Any]]] = defaultdict(list)
    settings = {"weights": arguments.weights, "log_level": "info"}
    with (
        open("/dev/null", "w") as log,
        running_service(settings, log=log) as service,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients,
    ):
        port, pid = httpx.URL(service.url).port, service.process.pid
        clients.submit(load, port, pid, request, 8, "keep", 0, 3).result()
        for number in range(arguments.rounds):
            for behaviour, connections in steps if number % 2 == 0 else reversed(steps):
                work = clients.submit(
                    load, port, pid, request, connections, behaviour, arguments.warm_up, arguments.seconds
                )
                runs[behaviour, connections].append(run := work.result())
                print(f"{behaviour} {connections}: {_line(run)}", flush=True)
                _wait_until_idle(service.url)
    rows = [{"behaviour": b, "connections": n, **_summarise(values)} for (b, n), values in runs.items()]
    return {"machine": machine.describe("cpu"), "seconds": arguments.seconds, "rounds": arguments.rounds, "rows": rows}


def _wait_until_idle(url: str) -> None:
    """Wait until the requests of the last step have left the service."""
    for _ in range(300):
        if "frcnn_queue_depth 0.0" in httpx.get(f"{url}/metrics", timeout=30).text:
            return
        time.sleep(0.1)
    raise RuntimeError("The service holds the slots of clients that have left.")


def _line(run: Mapping[str, Any]) -> str:
    return (
        f"{run['answered_per_s']:.1f} answers/s, {run['answers_per_cpu_s']:.1f} per processor second, "
        f"{run['refused_per_s']:.1f} refusals/s (p50 {run['refused_p50_s']:.2f} s, p95 {run['refused_p95_s']:.2f} s), "
        f"cores: service {run['server_cpu_per_s']:.2f}, clients {run['clients_cpu_per_s']:.2f}, others "
        f"{run['others_cpu_per_s']:.2f}; {run['server_mib']} MiB; {run['statuses']}, lost {run['lost']}"
    )


def _summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of a step's rounds, and the spread of its rate."""
    numbers = [name for name, value in runs[0].items() if isinstance(value, float | int) and name != "lost"]
    return {
        **{name: statistics.median(run[name] for run in runs) for name in numbers},
        "answered_per_s": results.spread([run["answered_per_s"] for run in runs]),
        "lost": sum(run["lost"] for run in runs),
    }


def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return the table."""
    best = best_rate(result)
    rows = [
        (
            f"{row['behaviour']}, {row['connections']:,}",
            f"{row['answered_per_s']['median']:.1f} "
            f"({row['answered_per_s']['low']:.1f} to {row['answered_per_s']['high']:.1f})",
            f"{100 * row['answered_per_s']['median'] / best:.0f} %",
            f"{row['answers_per_cpu_s']:.1f}",
            f"{row['refused_per_s']:.1f}",
            f"{row['refused_p50_s']:.2f}",
            f"{row['refused_p95_s']:.2f}",
            f"{row['server_cpu_per_s']:.2f}",
            f"{row['clients_cpu_per_s']:.2f}",
            f"{row['others_cpu_per_s']:.2f}",
            f"{row['server_mib']:.0f}",
            str(row["lost"]),
        )
        for row in result["rows"]
    ]
    title = f"A flood of POST /detect. {machine.sentence(result['machine'])}."
    columns = (
        "clients, connections",
        "answers/s",
        "of the best",
        "per cpu s",
        "refusals/s",
        "refused p50, s",
        "p95, s",
    )
    return [results.Table(title, (*columns, "cores, service", "clients", "others", "MiB", "lost"), rows)]


def best_rate(result: Mapping[str, Any]) -> float:
    """Return the highest rate of answers of any step."""
    return float(max(row["answered_per_s"]["median"] for row in result["rows"]))


def main() -> None:
    """Run the command. Ends with 1 where the answers at 200 connections or more are below the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="that each step is counted")
    parser.add_argument("--warm-up", type=float, default=5, help="seconds of each step before")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--connections", type=int, nargs="+", help=f"default: {CONNECTIONS}, and {HEEDING} for heed")
    parser.add_argument("--behaviours", nargs="+", default=["keep", "reconnect", "heed"])
    parser.add_argument("--out", type=Path, default=results.RESULTS / "flood.json")
    arguments = parser.parse_args()
    result = measure(arguments)
    results.write_json(arguments.out, result)
    if arguments.out.parent == results.RESULTS:
        fill_file(results.ROOT / "docs/overload.md", "flood", "\n".join(table.markdown() for table in tables(result)))
    for table in tables(result):
        table.print()
    best = best_rate(result)
    floods = [row for row in result["rows"] if row["connections"] >= 200 and row["behaviour"] != "heed"]
    sys.exit(0 if all(row["answered_per_s"]["median"] >= GOAL * best for row in floods) else 1)


if __name__ == "__main__":
    main()
