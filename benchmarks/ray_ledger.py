"""Two nodes, two replicas, load without a pause: a replica is killed, then a node. Is any answer lost?

    python -m benchmarks.scale_out --ledger

The nodes are real ones of Ray, with processes of their own, on this machine; the load goes through ``AsyncClient``,
with the retries that it has by default. Nothing is left running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import pictures
from service.client import AsyncClient, DetectError, DetectionResult
from service.server import ray_proxy
from service.settings import Settings

PATIENCE = 400  # seconds for Ray to do one thing, on a machine that has much else to do


@dataclass
class Ledger:
    """What the clients saw. lost: pictures without an answer, and why. wrong: answers unlike the first of a picture."""

    sent: int = 0
    answered: int = 0
    retries: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: int = 0
    slowest_s: float = 0.0
    phases: list[dict[str, Any]] = field(default_factory=list)
    _first: dict[int, DetectionResult] = field(default_factory=dict)

    def note(self, picture: int, found: DetectionResult, seconds: float) -> None:
        self.answered += 1
        self.retries += found.tries - 1
        self.slowest_s = max(self.slowest_s, seconds)
        first = self._first.setdefault(picture, found)
        # Batches of other sizes round differently in the last digits.
        same = first.labels == found.labels and all(
            abs(a - b) < 0.5
            for one, two in zip(first.boxes, found.boxes, strict=False)
            for a, b in zip(one, two, strict=True)
        )
        self.wrong += not same

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


@contextlib.contextmanager
def load(url: str, ledger: Ledger, clients: int) -> Iterator[None]:
    """``clients`` that ask one picture after another, in a thread, to the end; all that they ask is waited for."""
    enough = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_ask(url, ledger, clients, enough)), name="load")
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


async def _ask(url: str, ledger: Ledger, clients: int, enough: threading.Event) -> None:
    bodies = pictures(4)

    async def one(client: AsyncClient) -> None:
        while not enough.is_set():
            picture = ledger.sent % len(bodies)
            ledger.sent += 1
            begun = time.monotonic()
            try:
                found = await client.detect(bodies[picture], score_threshold=0.3)
                ledger.note(picture, found, time.monotonic() - begun)
            except DetectError as error:
                ledger.lost.append(f"{error.status}: {error}")

    async with AsyncClient(url, timeout=PATIENCE) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))


@contextlib.contextmanager
def cluster(settings: Settings) -> Iterator[Any]:
    """A head with Ray's own processes and one CPU, and a function that adds nodes of one CPU; gone at the end."""
    folder = tempfile.mkdtemp(prefix="ledger", dir="/tmp")  # short: the paths of sockets must be
    os.environ.update(
        ray_proxy.environment(settings),
        RAY_TMPDIR=folder,
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_PROCESS_SPAWN_LOG_LEVEL="error",
        OMP_NUM_THREADS="1",
        RAY_SERVE_LOG_TO_STDERR="0",
        # What a busy machine does not do in Ray's usual time is not dead.
        RAY_gcs_server_request_timeout_seconds=str(PATIENCE),
        RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S="60",
        # The one proxy would leave the other node's replica idle, and nobody would miss it.
        RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING="0",
        RAY_memory_monitor_refresh_ms="0",  # or Ray kills what is ours for the memory that others use
    )
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    ours = Cluster()
    try:
        add_node(ours, node)  # the head
        ray.init(address=ours.address, namespace="serve", log_to_driver=False)
        ours.again = lambda: add_node(ours, node)
        yield ours
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        ours.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def add_node(ours: Any, node: dict[str, Any]) -> Any:
    """One more node. Ray gives one 30 s to start, which on a busy machine is not always enough."""
    for left in reversed(range(5)):
        try:
            return ours.add_node(**node)
        except Exception as error:
            if "timed out during startup" not in str(error) or not left:
                raise
    raise AssertionError


def cut_off(node: Any) -> None:
    """Kill all processes of a node at once, as when its power goes: nobody can say good-bye."""
    own = [one.process.pid for kind in node.all_processes.values() for one in kind]
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    for pid in own:  # grows while it is walked, by the children
        own.extend(child for child, parent in parents.items() if parent == pid)
    for pid in own:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def replicas() -> dict[str, Any]:
    """The replicas that run, by their id: each with its ``pid`` and ``node_id``."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()["applications"]
    found = details.get("frcnn", {}).get("deployments", {}).get("detector", {}).get("replicas", [])
    return {one["replica_id"]: one for one in found if one["state"] == "RUNNING"}


def until_replicas(count: int, without: Sequence[str] = ()) -> dict[str, Any]:
    """Wait for so many replicas, none of them in ``without``."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        running = replicas()
        if len(running) == count and not set(without) & running.keys():
            return running
        time.sleep(0.2)
    raise TimeoutError(f"There were not {count} replicas within {PATIENCE} s.")


def until_ready(url: str) -> None:
    """Wait for the proxy, too."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer within {PATIENCE} s.")


def answers(ledger: Ledger, count: int, name: str) -> None:
    """Wait for ``count`` more answers, and note how fast they came, and how many replicas there were at the end."""
    begun, before = time.monotonic(), ledger.answered
    while ledger.answered < before + count and not ledger.lost:
        time.sleep(0.01)
    answered, seconds = ledger.answered - before, time.monotonic() - begun
    retries = ledger.retries - sum(phase["retries"] for phase in ledger.phases)
    rate = round(answered / seconds, 2)
    phase = {"phase": name, "answered": answered, "per_s": rate, "retries": retries, "replicas": len(replicas())}
    ledger.phases.append(phase)


def incidents(ours: Any, worker: Any, url: str, ledger: Ledger, clients: int, count: int) -> None:
    """Two replicas; one is killed, and comes back; its node is killed, and another joins."""
    running = until_replicas(2)
    assert len({one["node_id"] for one in running.values()}) == 2, "a replica a node"
    with load(url, ledger, clients):
        answers(ledger, count, "two replicas")
        killed, victim = next(iter(running.items()))
        os.kill(victim["pid"], signal.SIGKILL)
        answers(ledger, count, "right after a replica's process was killed")
        running = until_replicas(2, without=[killed])
        answers(ledger, count, "Ray has started another")
        gone = [name for name, one in running.items() if one["node_id"] == worker.node_id]
        cut_off(worker)
        answers(ledger, count, "right after a node was killed")
        ours.remove_node(worker, allow_graceful=False)  # what is left of it is the bookkeeping
        ours.again()
        until_replicas(2, without=gone)
        answers(ledger, count, "another node has joined")


def run_ledger(clients: int, count: int) -> dict[str, Any]:
    """The ledger of one run; ``count``: answers waited for in each phase."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(device="cpu", torch_threads=1, log_level="error", host="127.0.0.1", port=port)
    ledger = Ledger()
    begun = time.monotonic()
    with cluster(settings) as ours:
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation

        from service.server.ray_app import NAME, Scale, build

        worker = ours.again()
        # One address for all nodes: they share this machine's ports. In a cluster of machines every node has a proxy.
        with contextlib.suppress(TimeoutError):  # after a minute without its proxy; it comes all the same
            serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host="127.0.0.1", port=port))
        application = build(settings, Scale(min_replicas=2, max_replicas=2, num_gpus=0))
        serve.run(application, name=NAME, route_prefix="/")
        started = time.monotonic() - begun
        until_ready(f"http://127.0.0.1:{port}/readyz")
        incidents(ours, worker, f"http://127.0.0.1:{port}", ledger, clients, count)
    times = {"clients": clients, "start_s": round(started, 1), "all_s": round(time.monotonic() - begun, 1)}
    return times | ledger.as_json() | {"left_running": left_running()}


def left_running() -> list[str]:
    """Processes that were started with this run's files, after a while in which they may end."""
    mark = f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}".encode()
    end = time.monotonic() + 30
    while True:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):  # it has just ended
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)
