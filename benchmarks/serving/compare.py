"""Compare servers through HTTP on loopback: our service, LitServe, Ray Serve, BentoML and TorchServe.

    python -m benchmarks.serving.compare --presets LITE RESNET50_FPN --clients 1 8 32 --rounds 2

Each peer serves (a) torchvision's detector and (b) ours, in batches of at most 1 and of at most 8, and counts with the
better of the two. wrk posts the same JPEG of 640 x 480 again and again from so many connections; all have the same
weights and the same number of torch's threads. A server must first return the right boxes. One server runs at a time,
in rounds, forwards and backwards. A point lasts --seconds, or as long as six images for each client would take alone,
but at most --most. How to install the peers: benchmarks/peers/README.md.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.lib import machine, models, results
from benchmarks.lib.contenders import DetectedBoxes, share_found
from benchmarks.lib.images import cat_jpeg
from benchmarks.lib.service import free_port
from benchmarks.serving import wrk
from benchmarks.serving.servers import (
    OURS,
    PEERS,
    VENV,
    Broken,
    Server,
    installed_versions,
    our_server,
    peer_server,
    post,
    running,
    share_packages,
)
from model.detector import Detector

ENGINES = {"torchvision": "a", "ours": "b"}


@lru_cache
def expected_boxes(preset: str) -> DetectedBoxes:
    """Return what our detector finds in the image in float32."""
    detector = Detector.from_checkpoint(models.checkpoint(preset), precision="fp32", device="cpu")
    (detections,) = detector.detect([np.array(Image.open(io.BytesIO(cat_jpeg())).convert("RGB"))])
    return DetectedBoxes.of(detections)


def check(response: Any, preset: str) -> float:
    """Return the share of the expected boxes in a response's JSON. Raises ``Broken`` where most are missing."""
    response = response[0] if isinstance(response, list) else response
    boxes = torch.tensor(response["boxes"], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor(response.get("class_ids", response.get("labels")), dtype=torch.int64)
    answer = DetectedBoxes(boxes, torch.tensor(response["scores"]), labels)
    share = share_found([answer], [expected_boxes(preset)])
    if share < 0.5:
        raise Broken(f"its boxes are wrong: {share:.0%} of the expected ones")
    return share


def load(
    server: Server, url: str, arguments: argparse.Namespace, preset: str, folder: Path
) -> tuple[float, dict[int, dict[str, Any]]]:
    """Return the share of expected boxes, and a point for each number of clients."""
    share = check(post(url, server).json(), preset)
    begin = time.perf_counter()
    post(url, server)
    seconds_alone = time.perf_counter() - begin
    points = {}
    for clients in arguments.clients:
        if seconds_alone < 1:
            wrk.load(url, server, clients, 2, folder, stages=False)  # caches fill, and BentoML's batcher learns
        # What is under way at the end does not count: with few rounds of answers, large batches would look slow.
        seconds = min(arguments.most, max(arguments.seconds, 6 * clients * seconds_alone))
        points[clients] = wrk.load(url, server, clients, seconds, folder, stages=server.name == OURS and clients == 1)
        post(url, server)  # what wrk left behind is done by then
    return share, points


def compare(preset: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all servers on one preset."""
    about = machine.describe(arguments.device, "litserve", "ray", "bentoml", "torchserve")
    servers: list[tuple[str, str, int]] = [(OURS, "ours", 8)]
    servers += [(name, engine, batch) for name in arguments.peers for engine in arguments.engines for batch in (1, 8)]
    rows: dict[str, dict[str, Any]] = {}
    points: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for number in range(arguments.rounds):
        for name, engine, batch in servers if number % 2 == 0 else reversed(servers):
            port = free_port()
            key = f"{name}/{engine}/{batch}"
            row = rows.setdefault(key, {"name": name, "engine": engine, "batch": batch})
            if "failed" in row:
                continue
            print(f"{preset}, round {number + 1}: {key}", flush=True)
            try:
                if name == OURS:
                    server = our_server(preset, arguments.threads, arguments.device, port)
                else:
                    venv = arguments.venv.absolute()
                    server = peer_server(name, preset, engine, batch, arguments.threads, port, folder, venv)
                with running(server, port, folder) as url:
                    row["agrees"], measured = load(server, url, arguments, preset, folder)
            except Broken as reason:
                row["failed"] = str(reason)
                continue
            for clients, point in measured.items():
                points[key][clients].append(point)
    for key, row in rows.items():
        row["clients"] = {str(clients): wrk.summarise(runs) for clients, runs in points[key].items()}
    return {
        "machine": about | {"torch_threads": arguments.threads},
        "peers": installed_versions(arguments.venv),
        "preset": preset,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "rows": list(rows.values()),
    }


# ------------------------------------------------------------------------------------------------------------- tables
def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return two tables for each run: all points, and ours over the best peer."""
    return [table for run in result["runs"].values() for table in (_points(run), _ratios(run))]


def _points(run: Mapping[str, Any]) -> results.Table:
    rows = []
    for row in run["rows"]:
        server = f"{row['name']}, at most {row['batch']}, ({ENGINES[row['engine']]}) {row['engine']}"
        if row["name"] == OURS:
            server = "this service"
        if "failed" in row:
            rows.append((server, row["failed"], *[""] * 6))
        for clients, point in row["clients"].items():
            errors = ", ".join(f"{count} {kind}" for kind, count in point["errors"].items()) or "none"
            times = (f"{point[name] * 1000:,.1f}" for name in ("p50", "p95", "p99"))
            rate = wrk.format_rate(point["requests_per_s"])
            rows.append((server, clients, rate, str(point["requests"]), *times, errors))
    versions = ", ".join(f"{name} {version}" for name, version in run["peers"].items())
    return results.Table(
        f"{run['preset']}: a JPEG of 640 x 480, {run['rounds']} rounds of {run['seconds']:g} s or longer. "
        f"{machine.sentence(run['machine'])}; {versions}.",
        ("server", "clients", "requests/s", "requests", "p50 ms", "p95 ms", "p99 ms", "errors"),
        rows,
    )


def best_peer(run: Mapping[str, Any], engine: str, clients: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return row and point of the peer that serves ``engine`` to so many clients at the highest rate, or None."""
    peers = [
        (row, row["clients"][clients])
        for row in run["rows"]
        if row["name"] != OURS and row["engine"] == engine and row["clients"].get(clients, {}).get("requests")
    ]
    return max(peers, key=lambda peer: peer[1]["requests_per_s"]["median"], default=None)


def our_points(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return our service's point for each number of clients; none where it did not run."""
    row = next((row for row in run["rows"] if row["name"] == OURS and "failed" not in row), {"clients": {}})
    points: dict[str, dict[str, Any]] = row["clients"]
    return points


def _ratios(run: Mapping[str, Any]) -> results.Table:
    """Return ours over the best peer at its better batch size, by engine and clients, and what HTTP costs."""
    rows = []
    for clients, ours in our_points(run).items():
        for engine, letter in ENGINES.items():
            if peer := best_peer(run, engine, clients):
                row, point = peer
                ratio = ours["requests_per_s"]["median"] / point["requests_per_s"]["median"]
                rows.append(
                    (
                        f"requests/s at {clients} clients over the best peer ({letter}), {row['name']}, "
                        f"at most {row['batch']}",
                        f"{ratio:.2f}x",
                        f"p99 {ours['p99'] * 1000:,.1f} ms against {point['p99'] * 1000:,.1f} ms",
                    )
                )
        if ours["overhead"] is not None:
            rows.append(
                (
                    f"HTTP overhead at {clients} client: p50 less the engine's part",
                    f"{ours['overhead'] * 1000:.2f} ms",
                    f"p50 {ours['p50'] * 1000:.1f} ms, engine {ours['engine'] * 1000:.1f} ms",
                )
            )
    return results.Table(
        f"{run['preset']}: this service against the best peer.", ("comparison", "result", "details"), rows
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(models.PRESETS), choices=models.PRESETS)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10, help="of a point, at least")
    parser.add_argument("--most", type=float, default=180, help="seconds of a point, at most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's, everywhere")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--venv", type=Path, default=VENV, help="where the peers are installed")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers that were started are ended
    share_packages(arguments.venv)
    with tempfile.TemporaryDirectory() as folder:
        for preset in arguments.presets:
            run = compare(preset, arguments, Path(folder))
            whole = set(arguments.peers) == set(PEERS) and set(arguments.engines) == set(ENGINES)
            part = "" if whole else f"/{'+'.join(arguments.peers)}/{'+'.join(arguments.engines)}"
            result = results.load("serve")
            result.setdefault("runs", {})[f"{preset}{part}/{machine.widest_vectors(run['machine'])}"] = run
            results.save("serve", result)
    for table in tables(results.load("serve")):
        table.print()


if __name__ == "__main__":
    main()
