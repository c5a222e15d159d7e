"""Kill a replica and then a node of two under load, and count the answers that are lost.

    python -m benchmarks.serving.ray_failover --clients 4 --answers 40

The nodes are real ones of Ray, with processes of their own, on this machine; the load goes through ``AsyncClient``,
with the retries that it has by default. Nothing is left running. Writes benchmarks/results/ray-ledger.json, of which
docs/scaling.md shows a table; exits with 1 where an answer was lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib import results
from benchmarks.lib.images import mixed_jpegs
from benchmarks.lib.service import descendants, free_port
from benchmarks.serving.ray_overhead import conditions
from service.client import AsyncClient, DetectError, DetectionResult
from service.server import ray_proxy
from service.settings import Settings

TIMEOUT = 400  # seconds for Ray to do one thing, on a machine that has much else to do


@dataclass
class Ledger:
    """What the clients saw.

    lost: why images got no answer. wrong: answers unlike the first for the same image.
    """

    sent: int = 0
    answered: int = 0
    retries: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: int = 0
    slowest_s: float = 0.0
    phases: list[dict[str, Any]] = field(default_factory=list)
    _first: dict[int, DetectionResult] = field(default_factory=dict)

    def note(self, image: int, result: DetectionResult, seconds: float) -> None:
        """Count an answer."""
        self.answered += 1
        self.retries += result.tries - 1
        self.slowest_s = max(self.slowest_s, seconds)
        first = self._first.setdefault(image, result)
        # Batches of other sizes round differently in the last digits.
        same = first.labels == result.labels and all(
            abs(a - b) < 0.5
            for box, other in zip(first.boxes, result.boxes, strict=False)
            for a, b in zip(box, other, strict=True)
        )
        self.wrong += not same

    def as_json(self) -> dict[str, Any]:
        """Return the counts."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


@contextlib.contextmanager
def load(url: str, ledger: Ledger, clients: int) -> Iterator[None]:
    """Run ``clients`` in a thread that ask for one image after another, until the block ends; waits for the last."""
    stopping = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_ask(url, ledger, clients, stopping)), name="load")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


async def _ask(url: str, ledger: Ledger, clients: int, stopping: threading.Event) -> None:
    bodies = mixed_jpegs(4)

    async def send_in_turn(client: AsyncClient) -> None:
        while not stopping.is_set():
            image = ledger.sent % len(bodies)
            ledger.sent += 1
            begin = time.monotonic()
            try:
                result = await client.detect(bodies[image], score_threshold=0.3)
                ledger.note(image, result, time.monotonic() - begin)
            except DetectError as error:
                ledger.lost.append(f"{error.status}: {error}")

    async with AsyncClient(url, timeout=TIMEOUT) as client:
        await asyncio.gather(*(send_in_turn(client) for _ in range(clients)))


@contextlib.contextmanager
def cluster(settings: Settings) -> Iterator[Any]:
    """Run a head with Ray's own processes and one CPU; ``again()`` adds a node of one CPU. All ends with the block."""
    folder = tempfile.mkdtemp(prefix="ledger", dir="/tmp")  # short: the paths of sockets must be
    os.environ.update(
        ray_proxy.environment(settings),
        RAY_TMPDIR=folder,
        RAY_USAGE_STATS_ENABLED="0",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_PROCESS_SPAWN_LOG_LEVEL="error",
        OMP_NUM_THREADS="1",
        RAY_SERVE_LOG_TO_STDERR="0",
        # On a busy machine parts may answer later than Ray's usual limits.
        RAY_gcs_server_request_timeout_seconds=str(TIMEOUT),
        RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S="60",
        # Else the one proxy would leave the other node's replica idle.
        RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING="0",
        RAY_memory_monitor_refresh_ms="0",  # or Ray kills our processes for the memory that others use
    )
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    nodes = Cluster()
    try:
        add_node(nodes, node)  # the head
        ray.init(address=nodes.address, namespace="serve", log_to_driver=False)
        nodes.again = lambda: add_node(nodes, node)
        yield nodes
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        nodes.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def add_node(cluster: Any, node: dict[str, Any]) -> Any:
    """Add a node. Ray gives one 30 s to start, which on a busy machine is not always enough."""
    for left in reversed(range(5)):
        try:
            return cluster.add_node(**node)
        except Exception as error:
            if "timed out during startup" not in str(error) or not left:
                raise
    raise AssertionError


def kill_node(node: Any) -> None:
    """Kill all processes of a node at once, as when its power fails."""
    leaders = [each.process.pid for kind in node.all_processes.values() for each in kind]
    for pid in {child for leader in leaders for child in (leader, *descendants(leader))}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def replicas() -> dict[str, Any]:
    """Return the replicas that run, by their id: each with its ``pid`` and ``node_id``."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()["applications"]
    every = details.get("frcnn", {}).get("deployments", {}).get("detector", {}).get("replicas", [])
    return {replica["replica_id"]: replica for replica in every if replica["state"] == "RUNNING"}


def until_replicas(count: int, without: Sequence[str] = ()) -> dict[str, Any]:
    """Wait for so many replicas, none of them in ``without``, and return them."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        running = replicas()
        if len(running) == count and not set(without) & running.keys():
            return running
        time.sleep(0.2)
    raise TimeoutError(f"There were not {count} replicas within {TIMEOUT} s.")


def until_ready(url: str) -> None:
    """Wait until Ray's proxy answers."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer within {TIMEOUT} s.")


def answers(ledger: Ledger, count: int, name: str) -> None:
    """Wait for ``count`` more answers, and note how fast they came, and how many replicas there were at the end."""
    begin, before = time.monotonic(), ledger.answered
    while ledger.answered < before + count and not ledger.lost:
        time.sleep(0.01)
    answered, seconds = ledger.answered - before, time.monotonic() - begin
    retries = ledger.retries - sum(phase["retries"] for phase in ledger.phases)
    rate = round(answered / seconds, 2)
    phase = {"phase": name, "answered": answered, "per_s": rate, "retries": retries, "replicas": len(replicas())}
    ledger.phases.append(phase)


def incidents(nodes: Any, worker: Any, url: str, ledger: Ledger, clients: int, count: int) -> None:
    """Kill one of two replicas, wait for another, kill its node, and add another node."""
    running = until_replicas(2)
    assert len({replica["node_id"] for replica in running.values()}) == 2, "one replica on each node"
    with load(url, ledger, clients):
        answers(ledger, count, "two replicas")
        killed, victim = next(iter(running.items()))
        os.kill(victim["pid"], signal.SIGKILL)
        answers(ledger, count, "right after a replica's process was killed")
        running = until_replicas(2, without=[killed])
        answers(ledger, count, "Ray has started another")
        gone = [name for name, replica in running.items() if replica["node_id"] == worker.node_id]
        kill_node(worker)
        answers(ledger, count, "right after a node was killed")
        nodes.remove_node(worker, allow_graceful=False)  # from the cluster's own list
        nodes.again()
        until_replicas(2, without=gone)
        answers(ledger, count, "another node has joined")


def run(clients: int, count: int) -> dict[str, Any]:
    """Run all phases, and return what the clients saw; ``count``: answers waited for in each phase."""
    port = free_port()
    settings = Settings(device="cpu", torch_threads=1, log_level="error", host="127.0.0.1", port=port)
    ledger = Ledger()
    begin = time.monotonic()
    with cluster(settings) as nodes:
        from ray import serve
        from ray.serve.config import HTTPOptions, ProxyLocation

        from service.server.ray_app import NAME, Scale, build

        worker = nodes.again()
        # One address for all nodes: they share this machine's ports. In a cluster of machines every node has a proxy.
        with contextlib.suppress(TimeoutError):  # after a minute without its proxy; it comes all the same
            serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host="127.0.0.1", port=port))
        application = build(settings, Scale(min_replicas=2, max_replicas=2, num_gpus=0))
        serve.run(application, name=NAME, route_prefix="/")
        started = time.monotonic() - begin
        until_ready(f"http://127.0.0.1:{port}/readyz")
        incidents(nodes, worker, f"http://127.0.0.1:{port}", ledger, clients, count)
    times = {"clients": clients, "start_s": round(started, 1), "all_s": round(time.monotonic() - begin, 1)}
    return times | ledger.as_json() | {"left_running": left_running()}


def left_running() -> list[str]:
    """Return the commands of this run's processes that have not ended within 30 s."""
    mark = f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}".encode()
    end = time.monotonic() + 30
    while True:
        commands = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):  # it has just ended
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        commands.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        if not commands or time.monotonic() > end:
            return commands
        time.sleep(0.2)


def tables(result: dict[str, Any]) -> list[results.Table]:
    """Return the table of the phases."""
    rows = [
        (phase["phase"], *(str(phase[name]) for name in ("answered", "per_s", "retries", "replicas")))
        for phase in result["phases"]
    ]
    title = (
        f"Sent {result['sent']}, answered {result['answered']}, retries {result['retries']}, lost "
        f"{len(result['lost'])}, wrong {result['wrong']}; the slowest answer took {result['slowest_s']:.1f} s."
    )
    return [results.Table(title, ("phase", "answers", "answers/s", "retries", "replicas at its end"), rows)]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--answers", type=int, default=40, help="to wait for in each phase")
    parser.add_argument("--out", type=Path, default=results.RESULTS / "ray-ledger.json")
    arguments = parser.parse_args()
    result = run(arguments.clients, arguments.answers)
    command = f"python -m benchmarks.serving.ray_failover --clients {arguments.clients} --answers {arguments.answers}"
    results.write_json(arguments.out, conditions(command) | result)
    for table in tables(result):
        table.print()
    raise SystemExit(1 if result["lost"] or result["wrong"] else 0)


if __name__ == "__main__":
    main()
