"""Measure what is answered, what is refused and how long it takes, from half to four times the capacity.

    python -m benchmarks.serving.overload --seconds 15 --weights lite-voc20

Starts a service of its own, measures its capacity with more clients than it has places in a batch, and then sends
requests at a fixed rate whether or not earlier ones have been answered. Ends within ``--budget`` seconds, and leaves
the highest loads out where that is too few. Writes benchmarks/results/overload.json, the table in docs/overload.md and
docs/images/overload.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib import machine, results
from benchmarks.lib.images import mixed_jpegs
from benchmarks.lib.markers import fill_file
from benchmarks.lib.service import running_service, stop

PAGE = results.ROOT / "docs/overload.md"
PLOT = results.ROOT / "docs/images/overload.svg"
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
NO_ANSWER = 0  # instead of a status, whatever the reason
CLIENTS = 16  # twice FRCNN_MAX_BATCH: the device never waits for them


@dataclass(frozen=True)
class Answer:
    """status: of HTTP, or ``NO_ANSWER``. sent, received: seconds on one clock.

    retry_after: seconds, 0 where the response named none.
    """

    status: int
    sent: float
    received: float
    retry_after: int = 0

    @property
    def seconds(self) -> float:
        return self.received - self.sent


async def send(client: httpx.AsyncClient, body: bytes) -> Answer:
    """Send one request; an error of the connection is an answer too."""
    sent = time.perf_counter()
    try:
        answer = await client.post("/detect", content=body)
    except httpx.HTTPError:
        return Answer(NO_ANSWER, sent, time.perf_counter())
    return Answer(answer.status_code, sent, time.perf_counter(), int(answer.headers.get("retry-after", 0)))


async def capacity(client: httpx.AsyncClient, bodies: list[bytes], seconds: float) -> float:
    """Return the requests a second that are answered to ``CLIENTS`` that send one after another."""
    until, done = time.perf_counter() + seconds, 0

    async def send_in_turn(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            answer = await send(client, bodies[number % len(bodies)])
            done += answer.status == 200
            number += 1

    begin = time.perf_counter()
    await asyncio.gather(*(send_in_turn(number) for number in range(CLIENTS)))
    return done / (time.perf_counter() - begin)


async def offer(client: httpx.AsyncClient, bodies: list[bytes], rate: float, seconds: float) -> list[Answer]:
    """Send at ``rate`` for so long, and wait for all answers."""
    begin, tasks = time.perf_counter(), []
    for number in range(max(1, int(rate * seconds))):
        await asyncio.sleep(begin + number / rate - time.perf_counter())
        tasks.append(asyncio.create_task(send(client, bodies[number % len(bodies)])))
    return await asyncio.gather(*tasks)


def row(load: float, seconds: float, answers: list[Answer]) -> dict[str, Any]:
    """Return one row. answered_per_s: while requests were sent, without the first and the last fifth of that time."""
    begin, last = answers[0].sent, answers[-1].sent
    span = max(last - begin, seconds / 2)
    inner = [a for a in answers if a.status == 200 and begin + 0.2 * span <= a.received <= begin + 0.8 * span]
    latencies = [answer.seconds for answer in answers if answer.status == 200]
    thirds = [
        [a.seconds for a in answers if a.status == 200 and i <= 3 * (a.sent - begin) / max(span, 1e-9) < i + 1]
        for i in range(3)
    ]
    retry_after = [answer.retry_after for answer in answers if answer.status == 429]
    return {
        "load": load,
        "offered_per_s": round(len(answers) / span, 1),
        "answered_per_s": round(len(inner) / (0.6 * span), 1),
        "statuses": {str(status): n for status, n in sorted(Counter(a.status for a in answers).items())},
        "p50_s": quantile(latencies, 0.5),
        "p95_s": quantile(latencies, 0.95),
        "max_s": quantile(latencies, 1),
        "p95_by_third_s": [quantile(third, 0.95) for third in thirds],
        "refused_p95_s": quantile([answer.seconds for answer in answers if answer.status == 429], 0.95),
        "retry_after_s": [min(retry_after), max(retry_after)] if retry_after else [],
    }


def quantile(values: list[float], share: float) -> float:
    """Return a quantile; 0 of no values."""
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 3) if values else 0.0


async def measure(url: str, seconds: float, queue: int, until: float) -> dict[str, Any]:
    """Measure the capacity, and as many loads as there is time for until ``until``, of ``time.monotonic``."""
    bodies = mixed_jpegs(8)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        await capacity(client, bodies, min(3, seconds))
        most = max(0.2, await capacity(client, bodies, seconds))
        print(f"capacity {most:.1f}/s, with a queue of {queue}: a wait of {queue / most:.1f} s at most", flush=True)
        rows: list[dict[str, Any]] = []
        for load in LOADS:
            if until - time.monotonic() < seconds + queue / most:
                print(f"no time left for loads from {load:g} on", flush=True)
                break
            rows.append(row(load, seconds, await offer(client, bodies, load * most, seconds)))
            print(rows[-1], flush=True)
        ready = (await client.get("/readyz")).status_code == 200
    return {
        "capacity_per_s": round(most, 1),
        "max_queue": queue,
        "bound_s": round(queue / most, 2),
        "ready_afterwards": ready,
        "curve": rows,
    }


def serve_and_measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the service, measure it, and end it; its exit code is part of the result."""
    settings = {"max_queue": arguments.queue, "weights": arguments.weights, "torch_threads": arguments.threads}
    until = time.monotonic() + arguments.budget
    with running_service(settings, seconds=arguments.budget) as service:
        model = httpx.get(f"{service.url}/model").json()
        result = asyncio.run(measure(service.url, arguments.seconds, arguments.queue, until))
        code = stop(service.process)
    detector = {name: model[name] for name in ("name", "precision", "device")}
    return {"detector": detector, "server_exit_code": code} | result


def tables(result: dict[str, Any]) -> list[results.Table]:
    """Return the table, for the terminal and for docs/overload.md."""
    rows = [
        (
            f"{r['load']:g} x",
            f"{r['offered_per_s']:g}",
            f"{r['answered_per_s']:g}",
            ", ".join(f"{count} x {status}" for status, count in r["statuses"].items()),
            f"{r['p50_s']:.2f}",
            f"{r['p95_s']:.2f}",
            " ".join(f"{third:.2f}" for third in r["p95_by_third_s"]),
            f"{r['refused_p95_s'] * 1000:.0f}",
            "-".join(map(str, sorted(set(r["retry_after_s"])))),
        )
        for r in result["curve"]
    ]
    columns = (
        "load",
        "offered/s",
        "answered/s",
        "answers",
        "p50, s",
        "p95, s",
        "p95 by third, s",
        "p95 of refusals, ms",
        "Retry-After, s",
    )
    detector = result["detector"]
    title = (
        f"`{result['command']}`, {result['date']}: {detector['name']}, {detector['precision']}, on {result['cores']} "
        f"cores that the load generator shares; the machine's load was {result['load_before']:g} before. Capacity "
        f"{result['capacity_per_s']:g}/s, queue {result['max_queue']}, so that nobody should wait much over "
        f"{result['bound_s']:g} s. The service's exit code was {result['server_exit_code']}."
    )
    return [results.Table(title, columns, rows)]


def section(result: dict[str, Any]) -> str:
    """Return the section of docs/overload.md."""
    (table,) = tables(result)
    return f"{table.markdown().rstrip()}\n\n![Answers and latency by load](images/{PLOT.name})\n"


def plot(result: dict[str, Any]) -> None:
    """Draw answers and refusals a second, and latency, by load."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "frcnn", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    curve = result["curve"]
    loads = [r["load"] for r in curve]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
    left.plot(loads, [r["offered_per_s"] for r in curve], color="0.7", label="offered")
    left.plot(loads, [r["answered_per_s"] for r in curve], "o-", label="answered with 200")
    left.axhline(result["capacity_per_s"], color="0.5", linestyle=":", label="capacity")
    left.set_ylabel("requests a second")
    right.plot(loads, [r["p50_s"] for r in curve], "o-", label="p50 of answers")
    right.plot(loads, [r["p95_s"] for r in curve], "o-", label="p95 of answers")
    right.plot(loads, [r["refused_p95_s"] for r in curve], "o-", label="p95 of refusals")
    right.axhline(result["bound_s"], color="0.5", linestyle=":", label="queue / capacity")
    right.set_ylabel("seconds")
    for axes in (left, right):
        axes.set_xlabel("load, times the capacity")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.25)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, facecolor="white", metadata={"Date": None})


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15, help="for each load")
    parser.add_argument("--budget", type=float, default=220, help="seconds for all, the service's start included")
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--queue", type=int, default=64, help="FRCNN_MAX_QUEUE")
    parser.add_argument("--threads", type=int, default=1, help="FRCNN_TORCH_THREADS; a core is left for the load")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "overload.json")
    arguments = parser.parse_args()
    options = " ".join(f"--{name} {getattr(arguments, name)}" for name in ("weights", "queue", "threads"))
    result = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.serving.overload --seconds {arguments.seconds:g} {options}",
        "cores": machine.cores(),
        "load_before": machine.load_average(),
    } | serve_and_measure(arguments)
    results.write_json(arguments.out, result)
    if arguments.out.parent == results.RESULTS:
        plot(result)
        fill_file(PAGE, "overload", section(result))
    sound = result["server_exit_code"] == 0 and result["ready_afterwards"]
    lost = sum(r["statuses"].get(str(NO_ANSWER), 0) for r in result["curve"])
    print(f"{lost} requests without an answer; the service's exit code {result['server_exit_code']}")
    sys.exit(0 if sound and not lost else 1)


if __name__ == "__main__":
    main()
