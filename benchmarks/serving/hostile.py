"""Send small, malformed and expensive requests of many kinds, and measure what each does to the other clients.

    python -m benchmarks.serving.hostile                      # everything, against a service of its own
    python -m benchmarks.serving.hostile --kinds http,tiff    # some kinds
    python -m benchmarks.serving.hostile --short              # the quick cases that tell most
    python -m benchmarks.serving.hostile --url http://127.0.0.1:8000 --pid 123    # against a running service

For each case: the bytes sent and the answers; the seconds until the last; the longest GET /livez meanwhile, sent every
50 ms on a connection of its own; the seconds of an ordinary POST /detect during it and after it; how much the memory of
the service and its processes rose (pages that they share count once); and the processor seconds until they were idle
again, without those of the ordinary requests. Ends with 1 where a limit is broken:

    livez 0.5 s, ordinary requests 5 s, memory 1 GiB, processor the request's deadline and a second;
    no status 500 and no error as plain text; every connection is answered or closed; and what the case itself demands.

``benchmarks/lib/hostile_requests.py`` has the cases. Only for a service on this machine; memory and processor time need
Linux. Writes benchmarks/results/hostile.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.lib import machine, results
from benchmarks.lib.hostile_case import KEY, Case, photograph, post
from benchmarks.lib.hostile_requests import KINDS, cases
from benchmarks.lib.markers import fill_file
from benchmarks.lib.process_tree import memory_mib, processor_seconds
from benchmarks.lib.raw_http import Address, AnswerReader, Exchange, exchange
from benchmarks.lib.service import running_service

_PROBE_SECONDS = 0.05
_METER_SECONDS = 0.1
_GIVEN_UP = 60.0  # seconds after which an ordinary request counts as unanswered
_IDLE = 0.03  # processor seconds within _IDLE_WINDOW: the service does nothing any more
_IDLE_WINDOW = 0.2
_LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Limits:
    """Bounds on what one case may do. patience_s: until a connection is answered, after its deadline."""

    livez_s: float = 0.5
    ordinary_s: float = 5.0
    memory_mib: float = 1024.0
    patience_s: float = 27.0  # a body may take FRCNN_BODY_SECONDS, 20


@dataclass
class Row:
    """What one case did. memory_mib, processor_s: None where they were not measured. broken: limits, in words."""

    kind: str
    name: str
    bytes: int
    answers: dict[str, int]
    seconds: float
    livez_s: float
    during_s: float
    after_s: float
    memory_mib: float | None = None
    processor_s: float | None = None
    broken: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """Return the row as a line of text."""
        answers = " ".join(f"{count} x {status}" if count > 1 else status for status, count in self.answers.items())
        memory = "-" if self.memory_mib is None else f"{self.memory_mib:.0f}"
        processor = "-" if self.processor_s is None else f"{self.processor_s:.1f}"
        return (
            f"{self.kind:10} {self.name[:58]:58} {self.bytes:11,} {answers[:24]:>24} {self.seconds:6.2f} "
            f"{self.livez_s:6.2f} {self.during_s:6.2f} {self.after_s:6.2f} {memory:>6} {processor:>6}  "
            f"{'; '.join(self.broken)}"
        )


HEAD = (
    f"{'kind':10} {'case':58} {'bytes':>11} {'answers':>24} {'s':>6} {'livez':>6} {'during':>6} {'after':>6} "
    f"{'MiB':>6} {'cpu s':>6}  broken"
)


def send_ordinary(address: Address, request: bytes) -> tuple[float, int]:
    """Send one request on a connection of its own; return the seconds and the status, 0 for none."""
    started, reader = time.monotonic(), AnswerReader()
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=_GIVEN_UP) as connection:
        connection.sendall(request)
        while data := connection.recv(1 << 16):
            reader.feed(data)
    return time.monotonic() - started, reader.answers[0].status if reader.answers else 0


class Watch:
    """Sends GET /livez every 50 ms, and reads the memory ten times a second, until the block ends."""

    def __init__(self, address: Address, pid: int | None) -> None:
        self.livez_s = 0.0
        self.livez_failed = 0
        self.probes = 0
        self.memory_mib = 0.0
        self._address, self._pid = address, pid
        self._done = threading.Event()
        targets = (self._probe, self._meter) if pid else (self._probe,)
        self._threads = [threading.Thread(target=target) for target in targets]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _probe(self) -> None:
        while not self._done.is_set():
            seconds, status = send_ordinary(self._address, _LIVEZ)
            self.livez_s = max(self.livez_s, seconds)
            self.livez_failed += status != 200
            self.probes += 1
            self._done.wait(_PROBE_SECONDS)

    def _meter(self) -> None:
        assert self._pid is not None
        while not self._done.is_set():
            self.memory_mib = max(self.memory_mib, memory_mib(self._pid))
            self._done.wait(_METER_SECONDS)


class Hostile:
    """Runs cases against a service and measures them.

    pid: of the service, None to measure neither memory nor processor time. processor: False not to measure that.
    """

    def __init__(self, address: Address, pid: int | None, limits: Limits, *, processor: bool = True) -> None:
        self.address, self.pid, self.limits = address, pid, limits
        self._measures_processor = processor and pid is not None
        self._ordinary = post("/detect", photograph(), timeout_ms=None)
        self._per_ordinary, self._per_probe = 0.0, 0.0
        send_ordinary(address, self._ordinary)
        if self._measures_processor:
            self._per_ordinary = self._cost(self._ordinary, 10)
            self._per_probe = self._cost(_LIVEZ, 60)

    def run(self, cases: Iterable[Case]) -> Iterator[Row]:
        """Yield a row for each case."""
        for case in cases:
            yield self._run(case)

    def _run(self, case: Case) -> Row:
        parts = [case.parts(number) for number in range(case.connections)]
        sizes = sum(len(part) for each in parts for part in each if isinstance(part, bytes))
        memory_before = memory_mib(self.pid) if self.pid else 0.0
        processor_before = self._processor()
        during: list[tuple[float, int]] = []
        with Watch(self.address, self.pid) as watch:
            innocent = threading.Thread(target=lambda: during.append(self._send_late()))
            innocent.start()
            started = time.monotonic()
            exchanges = asyncio.run(self._exchange(case, parts))
            seconds = time.monotonic() - started
            after = send_ordinary(self.address, self._ordinary)
            innocent.join()
        row = Row(
            case.kind,
            case.name,
            sizes * case.repeats,
            dict(Counter(str(a.status) for e in exchanges for a in e.answers).most_common()) or {"no answer": 1},
            round(seconds, 2),
            round(watch.livez_s, 3),
            round(during[0][0], 2),
            round(after[0], 2),
        )
        if self.pid:
            row.memory_mib = round(max(0.0, watch.memory_mib - memory_before))
        if self._measures_processor:
            own = self._processor_when_idle() - processor_before
            row.processor_s = round(max(0.0, own - 2 * self._per_ordinary - watch.probes * self._per_probe), 2)
        row.broken = [
            *self._broken_limits(case, row, watch, (during[0][1], after[1])),
            *broken_answers(case, exchanges),
        ]
        return row

    def _send_late(self) -> tuple[float, int]:
        time.sleep(0.03)  # until the case has begun
        return send_ordinary(self.address, self._ordinary)

    async def _exchange(self, case: Case, parts: Sequence[Sequence[Any]]) -> list[Exchange]:
        patience = case.closed_within + 2 if case.closed_within is not None else case.deadline + self.limits.patience_s
        exchanges = []
        for _ in range(case.repeats):
            exchanges += await asyncio.gather(
                *(
                    exchange(
                        self.address,
                        each,
                        patience=patience,
                        answers=None if case.closed_within is not None else case.answers,
                        read=case.read,
                        leave=case.leave,
                    )
                    for each in parts
                )
            )
        return exchanges

    def _broken_limits(self, case: Case, row: Row, watch: Watch, statuses: tuple[int, int]) -> Iterator[str]:
        limits = self.limits
        if watch.livez_s > limits.livez_s:
            yield f"livez took {watch.livez_s:.1f} s"
        if watch.livez_failed:
            yield f"livez failed {watch.livez_failed} times"
        for when, seconds, status in zip(("during", "after"), (row.during_s, row.after_s), statuses, strict=True):
            if seconds > limits.ordinary_s:
                yield f"an ordinary request {when} it took {seconds:.1f} s"
            if status != 200:
                yield f"an ordinary request {when} it got {status or 'no answer'}"
        if row.memory_mib is not None and row.memory_mib > limits.memory_mib:
            yield f"memory rose by {row.memory_mib:.0f} MiB"
        allowed = case.deadline + 1 if case.processor is None else case.processor
        if row.processor_s is not None and row.processor_s > allowed:
            yield f"{row.processor_s:.1f} s of processor time, of {allowed:g}"

    def _processor(self) -> float:
        return processor_seconds(self.pid) if self._measures_processor and self.pid else 0.0

    def _processor_when_idle(self, seconds: float = 60) -> float:
        """Return the processor seconds once the service does nothing more, or after ``seconds``."""
        until, used = time.monotonic() + seconds, self._processor()
        while time.monotonic() < until:
            time.sleep(_IDLE_WINDOW)
            before, used = used, self._processor()
            if used - before < _IDLE:
                break
        return used

    def _cost(self, request: bytes, count: int) -> float:
        """Return the processor seconds of one ordinary request."""
        before = self._processor_when_idle()
        for _ in range(count):
            send_ordinary(self.address, request)
        return (self._processor_when_idle() - before) / count


def broken_answers(case: Case, exchanges: Sequence[Exchange]) -> list[str]:
    """Return what is wrong with the answers to a case."""
    broken: Counter[str] = Counter()
    for each in exchanges:
        for answer in each.answers:
            if answer.status == 500 or (case.statuses is not None and answer.status not in case.statuses):
                broken[f"status {answer.status}"] += 1
            if answer.status >= 400 and answer.headers.get("content-type", "text/plain").startswith("text/plain"):
                broken[f"status {answer.status} as plain text"] += 1
        if each.malformed:
            broken[each.malformed] += 1
        if not each.answers and not case.silent:
            broken["no answer"] += 1
        if case.answers is not None and len(each.answers) != case.answers:
            broken[f"{len(each.answers)} answers of {case.answers}"] += 1
        if case.closed_within is not None:
            if each.closed is None or each.closed > case.closed_within:
                broken[f"not closed within {case.closed_within:g} s"] += 1
        elif case.answers is None and case.leave is None and each.closed is None:
            broken["the connection was left open"] += 1
    try:
        wrong = case.check(exchanges)
    except (LookupError, ValueError):
        wrong = "answers that are not as they should be"
    if wrong:
        broken[wrong] += 1
    return [f"{count} x {what}" if count > 1 else what for what, count in broken.items()]


# ---------------------------------------------------------------------------------------------------------- the result
def tables(result: dict[str, Any]) -> list[results.Table]:
    """Return a table with a row for each kind: its worst figures."""
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in result["rows"]):
        of_kind = [row for row in result["rows"] if row["kind"] == kind]

        def most(name: str, digits: int, of_kind: list[dict[str, Any]] = of_kind) -> str:
            values = [row[name] for row in of_kind if row[name] is not None]
            return f"{max(values):,.{digits}f}" if values else "-"

        broken = sum(bool(row["broken"]) for row in of_kind)
        ordinary = max(max(row["during_s"], row["after_s"]) for row in of_kind)
        worst = (most("livez_s", 2), f"{ordinary:.2f}", most("memory_mib", 0), most("processor_s", 1))
        rows.append((kind, str(len(of_kind)), *worst, str(broken)))
    columns = ("kind", "cases", "livez, s", "ordinary request, s", "memory, MiB", "processor, s", "over a limit")
    title = (
        f"`{result['command']}`, {result['date']}, commit {result['commit']}, on {result['cores']} cores: the worst."
    )
    return [results.Table(title, columns, rows)]


def run(address: Address, pid: int | None, chosen: Iterable[Case], limits: Limits) -> list[Row]:
    """Run cases, print a line for each, and return their rows."""
    rows = []
    print(HEAD, flush=True)
    for row in Hostile(address, pid, limits).run(chosen):
        print(row.line, flush=True)
        rows.append(row)
    return rows


@contextlib.contextmanager
def own_service(log: Path | None, **more: object) -> Iterator[tuple[Address, int]]:
    """Run a service with an API key and all dialects; yield its address and process. more: settings."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        keys = Path(folder) / "keys"
        keys.write_text(f"{KEY}\n")
        settings = {"deepstack": True, "huggingface": True, "open_inference": True, "api_keys_file": keys} | more
        output = stack.enter_context((log or Path(folder) / "log").open("w"))
        service = stack.enter_context(running_service(settings, log=output))
        yield address_of(service.url), service.process.pid


def address_of(url: str) -> Address:
    """Return host and port of a service on this machine."""
    match = re.fullmatch(r"http://(127\.0\.0\.1|localhost):(\d+)/?", url)
    if not match:
        raise SystemExit(f"{url} is not on this machine; give http://127.0.0.1:PORT.")
    return "127.0.0.1", int(match[2])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas; default: all")
    parser.add_argument("--match", default="", help="only cases whose name holds this")
    parser.add_argument("--short", action="store_true", help="only the quick cases that tell most")
    parser.add_argument("--url", help="of a running service; its dialects should be switched on")
    parser.add_argument("--pid", type=int, help="of that service, for memory and processor time")
    parser.add_argument("--log", type=Path, help="a file for the output of the service that is started")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "hostile.json")
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    chosen = (case for case in cases(kinds, arguments.short) if arguments.match in case.name)
    load = machine.load_average()
    with (
        contextlib.nullcontext((address_of(arguments.url), arguments.pid))
        if arguments.url
        else own_service(arguments.log)
    ) as (address, pid):
        rows = run(address, pid, chosen, Limits())
    result = {
        "date": date.today().isoformat(),
        "command": " ".join(["python -m benchmarks.serving.hostile", *(["--short"] if arguments.short else [])]),
        "commit": machine.commit(),
        "cores": machine.cores(),
        "load_before": load,
        "limits": dataclasses.asdict(Limits()),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    results.write_json(arguments.out, result)
    if arguments.out.parent == results.RESULTS:
        fill_file(results.ROOT / "docs/overload.md", "hostile", "\n".join(table.markdown() for table in tables(result)))
    for table in tables(result):
        table.print()
    broken = sum(bool(row.broken) for row in rows)
    print(f"{len(rows)} cases, {broken} over a limit")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
