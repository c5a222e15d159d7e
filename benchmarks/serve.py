"""Through HTTP on loopback: our service, and LitServe, Ray Serve, BentoML and TorchServe.

    python -m benchmarks.serve --presets LITE RESNET50_FPN --clients 1 8 32 --rounds 2

Each peer serves (a) torchvision's detector and (b) ours, in batches of at most 1 and of at most 8, and counts with the
better of the two. wrk posts the same JPEG of 640 x 480 over and over from so many connections; all have the same
weights and the same number of torch's threads. A server must first give the right boxes. One server runs at a time, in
rounds, forwards and backwards. A point lasts --seconds, or as long as six pictures for each client would take alone,
but at most --most. `--threads-table` tries our own service with other numbers of threads instead. How to install the
peers: benchmarks/peers/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from benchmarks import pairs, report

HERE = Path(__file__).resolve().parent
VENV = HERE / ".cache/peers"
PEERS = ("LitServe", "Ray Serve", "BentoML", "TorchServe")
ENGINES = {"torchvision": "a", "ours": "b"}
STARTING = 600.0  # seconds that a server may take until its first answer
REFUSALS = (400, 405, 413, 415, 422)  # no server says so because it is still loading
THREADS = ((1, 1, ""), (1, 2, ""), (2, 1, ""), (2, 2, ""), (2, 4, ""), (2, 1, "passive"), (2, 2, "passive"))


class Broken(Exception):
    """A server that cannot be measured; the text says why."""


@dataclass(frozen=True)
class Server:
    """One process tree to measure. body: (its bytes, its content type). environment: over ours."""

    name: str
    engine: str
    batch: int
    command: Sequence[str]
    path: str
    body: tuple[bytes, str]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """For results."""
        return f"{self.name}/{self.engine}/{self.batch}"


# -------------------------------------------------------------------------------------------------------- the servers
def picture() -> bytes:
    """A JPEG of 640 x 480, of the cat that comes with the page."""
    file = io.BytesIO()
    image = Image.open(report.ROOT / "service/web/examples/chelsea.jpg").convert("RGB")
    image.resize((640, 480)).save(file, "JPEG", quality=90)
    return file.getvalue()


def our_server(preset: str, threads: int, device: str, port: int, **settings: Any) -> Server:
    """The service as the command line runs it."""
    given = {
        "port": port,
        "weights": pairs.checkpoint(preset),
        "torch_threads": threads,
        "device": device,
        "timeout_ms": 600_000,
        "log_level": "error",
    } | settings
    environment = {f"FRCNN_{name.upper()}": str(value) for name, value in given.items()}
    command = (sys.executable, "-m", "service.cli", "serve")
    if shutil.which("frcnn", path=str(Path(sys.executable).parent)):
        command = (str(Path(sys.executable).with_name("frcnn")), "serve")
    batch = int(settings.get("max_batch", 8))
    return Server("frcnn-service", "ours", batch, command, "/detect", (picture(), "image/jpeg"), environment)


def peer_server(
    name: str, preset: str, engine: str, batch: int, threads: int, port: int, folder: Path, venv: Path
) -> Server:
    """A peer; raises ``Broken`` where it is not installed."""
    python, body, path = str(venv / "bin/python"), (picture(), "image/jpeg"), "/predict"
    environment = {
        "PEER_ENGINE": engine,
        "PEER_PRESET": preset,
        "PEER_BATCH": str(batch),
        "PEER_THREADS": str(threads),
        "PEER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(report.ROOT),
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    if name == "Ray Serve":
        return Server(name, engine, batch, (sys.executable, "-m", "benchmarks.peers.rayserve"), path, body, environment)
    if not Path(python).exists():
        raise Broken(f"there is no {venv.relative_to(report.ROOT) if venv.is_relative_to(report.ROOT) else venv.name}")
    command: tuple[str, ...]
    if name == "LitServe":
        command = (python, "-m", "benchmarks.peers.lit")
    elif name == "BentoML":
        command = (
            str(venv / "bin/bentoml"),
            "serve",
            "benchmarks.peers.bento:Detect",
            "--working-dir",
            str(report.ROOT),
        )
        command += ("--host", "127.0.0.1", "--port", str(port))
        form = httpx.Request("POST", "http://x", files={"images": ("picture.jpg", body[0], "image/jpeg")})
        body = (form.read(), form.headers["content-type"])
        environment |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bento")}
    else:
        command = _torchserve(venv, folder, batch, port)
        path = "/predictions/detector"
    return Server(name, engine, batch, command, path, body, environment)


def _torchserve(venv: Path, folder: Path, batch: int, port: int) -> tuple[str, ...]:
    """Pack the handler, write the configuration, and say how to start it."""
    if not shutil.which("java"):
        raise Broken("there is no java; Debian has it as default-jre-headless")
    store = folder / f"torchserve-{batch}"
    store.mkdir(exist_ok=True)
    pack = [venv / "bin/torch-model-archiver", "--model-name", "detector", "--version", "1.0", "--force"]
    pack += ["--handler", HERE / "peers/torchserve_handler.py", "--export-path", store]
    subprocess.run([str(part) for part in pack], check=True, capture_output=True)
    model = {"1.0": {"defaultVersion": True, "marName": "detector.mar", "minWorkers": 1, "maxWorkers": 1}}
    model["1.0"] |= {"batchSize": batch, "maxBatchDelay": 10, "responseTimeout": 600, "startupTimeout": 600}
    lines = {
        "inference_address": f"http://127.0.0.1:{port}",
        "management_address": f"http://127.0.0.1:{port + 1}",
        "metrics_address": f"http://127.0.0.1:{port + 2}",
        "model_store": str(store),
        "load_models": "detector.mar",
        "disable_token_authorization": "true",
        "default_response_timeout": "600",
        "default_startup_timeout": "600",
        "job_queue_size": "1000",
        "models": json.dumps({"detector": model}),
    }
    configuration = store / "config.properties"
    configuration.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    start = (str(venv / "bin/torchserve"), "--start", "--foreground", "--ncs", "--disable-token-auth")
    return (*start, "--ts-config", str(configuration), "--model-store", str(store))


def see_project(venv: Path) -> None:
    """Let the peers' environment find the project's torch, behind its own packages."""
    for packages in venv.glob("lib/python*/site-packages"):
        own = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "frcnn-project.pth").write_text("\n".join(own) + "\n")


def free_port() -> int:
    """The first of three in a row that are free, below those that systems hand out to whoever asks for any.

    Ray's own parts ask for any, at every start, and one that has been free just now may be theirs a moment later.
    """
    for port in random.sample(range(20_000, 30_000, 3), 100):
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for number in range(3):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            return port
    raise Broken("there are no three free ports in a row")


@contextlib.contextmanager
def running(server: Server, port: int, folder: Path) -> Iterator[str]:
    """Start it and wait for its first answer; yields the URL to post to. Raises ``Broken``; ends what it started."""
    log = folder / f"{server.name.replace(' ', '-')}.log"
    url = f"http://127.0.0.1:{port}{server.path}"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(part) for part in server.command],
            env=os.environ | dict(server.environment),
            cwd=folder if server.name == "TorchServe" else report.ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until, status = time.monotonic() + STARTING, 0
        while True:
            if process.poll() is not None:
                raise Broken(f"it ended with {process.returncode}: {_tail(log)}")
            if time.monotonic() > until:
                said = f"the last was {status}" if status else _tail(log)
                raise Broken(f"no answer of 200 in {STARTING:g} s: {said}")
            with contextlib.suppress(httpx.HTTPError):
                status = ask(url, server).status_code
                if status == 200:
                    break
                if status in REFUSALS:
                    raise Broken(f"it refuses the picture with {status}")
            time.sleep(0.5)
        yield url
    finally:
        family = _family(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        _, left = psutil.wait_procs(family, timeout=10)
        for child in left:
            with contextlib.suppress(psutil.Error):
                child.kill()


def form_of(base: str) -> str:
    """What /model says of the engine."""
    model = httpx.get(f"{base}/model", timeout=60).json()
    return f"eager. {' '.join(model['optimizations'])}"


def _family(leader: int) -> list[psutil.Process]:
    """The descendants of a process, and what else is of its session: a child whose parent has ended has another."""
    found = set()
    with contextlib.suppress(psutil.Error):
        found |= set(psutil.Process(leader).children(recursive=True))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.pid != leader:
                found.add(process)
    return list(found)


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if "Error" in line or "error" in line] or lines
    return said[-1][:200] if said else "it said nothing"


def ask(url: str, server: Server) -> httpx.Response:
    """Post the picture once."""
    body, kind = server.body
    return httpx.post(url, content=body, headers={"Content-Type": kind, "Accept": "application/json"}, timeout=600)


def check(answer: Any, preset: str) -> float:
    """The share of the right boxes in an answer. Raises ``Broken`` where most are missing."""
    import numpy as np
    import torch

    from benchmarks.engine import Found, agreement
    from model.detector import Detector

    if preset not in _RIGHT:
        detector = Detector.from_checkpoint(pairs.checkpoint(preset), precision="fp32", device="cpu")
        (seen,) = detector.detect([np.array(Image.open(io.BytesIO(picture())).convert("RGB"))])
        _RIGHT[preset] = Found(seen.boxes, seen.scores, seen.class_ids)
    answer = answer[0] if isinstance(answer, list) else answer
    boxes = torch.tensor(answer["boxes"], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor(answer.get("class_ids", answer.get("labels")), dtype=torch.int64)
    share = agreement([Found(boxes, torch.tensor(answer["scores"]), labels)], [_RIGHT[preset]])
    if share < 0.5:
        raise Broken(f"its boxes are wrong: {share:.0%} of the right ones")
    return share


_RIGHT: dict[str, Any] = {}


# ---------------------------------------------------------------------------------------------------------- the load
def wrk(url: str, server: Server, clients: int, seconds: float, folder: Path, *, stages: bool) -> dict[str, Any]:
    """One point of the load; raises ``Broken`` where wrk is missing or fails."""
    if not shutil.which("wrk"):
        raise Broken("there is no wrk; Debian has it")
    body, kind = server.body
    file = folder / "body"
    file.write_bytes(body)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "600s"]
    command += ["-s", str(HERE / "post.lua"), url, "--", str(file), kind, *(["stages"] if stages else [])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse(run.stdout + run.stderr)


def parse(output: str) -> dict[str, Any]:
    """What post.lua says at its end: requests a second, seconds at percentiles, errors, and engine seconds or None."""
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise Broken(f"wrk failed: {output.strip()[-200:]}")
    said = json.loads(lines[-1].removeprefix("RESULT "))
    errors = {name: said[name] for name in ("connect", "read", "write", "status", "timeout") if said[name]}
    answered = said["requests"] - said["status"]
    return {
        "requests_per_s": answered / said["seconds"],
        "requests": answered,
        "errors": errors,
        **{name: said[name] for name in ("p50", "p95", "p99")},
        "engine": said["engine"],
    }


def load(
    server: Server, url: str, arguments: argparse.Namespace, preset: str, folder: Path
) -> tuple[float, dict[int, dict[str, Any]]]:
    """The share of right boxes, and a point for each number of clients."""
    share = check(ask(url, server).json(), preset)
    begun = time.perf_counter()
    ask(url, server)
    one = time.perf_counter() - begun
    points = {}
    for clients in arguments.clients:
        if one < 1:
            wrk(url, server, clients, 2, folder, stages=False)  # caches fill, and BentoML's batcher learns
        # What is under way at the end does not count: with few rounds of answers, large batches would look slow.
        seconds = min(arguments.most, max(arguments.seconds, 6 * clients * one))
        stages = server.name == "frcnn-service" and clients == 1
        points[clients] = wrk(url, server, clients, seconds, folder, stages=stages)
        ask(url, server)  # what wrk left behind is done by then
    return share, points


# ----------------------------------------------------------------------------------------------------- what is wanted
def compare(preset: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All servers on one preset."""
    machine = report.environment(arguments.device, "litserve", "ray", "bentoml", "torchserve")
    wanted: list[tuple[str, str, int]] = [("frcnn-service", "ours", 8)]
    wanted += [(name, engine, batch) for name in arguments.peers for engine in arguments.engines for batch in (1, 8)]
    found: dict[str, dict[str, Any]] = {}
    points: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for number in range(arguments.rounds):
        for name, engine, batch in wanted if number % 2 == 0 else reversed(wanted):
            port = free_port()
            key = f"{name}/{engine}/{batch}"
            row = found.setdefault(key, {"name": name, "engine": engine, "batch": batch})
            if "failed" in row:
                continue
            print(f"{preset}, round {number + 1}: {key}", flush=True)
            try:
                if name == "frcnn-service":
                    server = our_server(preset, arguments.threads, arguments.device, port)
                else:
                    server = peer_server(
                        name, preset, engine, batch, arguments.threads, port, folder, arguments.venv.absolute()
                    )
                with running(server, port, folder) as url:
                    if name == "frcnn-service":
                        row["form"] = form_of(url.removesuffix(server.path))
                    row["agrees"], measured = load(server, url, arguments, preset, folder)
            except Broken as why:
                row["failed"] = str(why)
                continue
            for clients, point in measured.items():
                points[key][clients].append(point)
    for key, row in found.items():
        row["clients"] = {str(clients): summary(runs) for clients, runs in points[key].items()}
    return {
        "machine": machine | {"torch_threads": arguments.threads},
        "peers": _versions(arguments.venv),
        "preset": preset,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "rows": list(found.values()),
    }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rounds of one point: medians, and the spread of the rate."""
    errors: dict[str, int] = defaultdict(int)
    for run in runs:
        for kind, count in run["errors"].items():
            errors[kind] += count
    medians = {name: statistics.median(run[name] for run in runs) for name in ("p50", "p95", "p99")}
    engine = [run["engine"] for run in runs if run["engine"] is not None]
    return {
        "requests_per_s": report.spread([run["requests_per_s"] for run in runs]),
        "requests": sum(run["requests"] for run in runs),
        **medians,
        "errors": dict(errors),
        "engine": statistics.median(engine) if engine else None,
        "overhead": statistics.median(run["p50"] - run["engine"] for run in runs if run["engine"]) if engine else None,
    }


def threads_table(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Our service with other numbers of threads, on LITE."""
    machine = report.environment(arguments.device)
    points: dict[tuple[int, int, str], list[dict[str, Any]]] = defaultdict(list)
    for number in range(arguments.rounds):
        for trial in THREADS if number % 2 == 0 else reversed(THREADS):
            torch_threads, decoding, waiting = trial
            port = free_port()
            server = our_server("LITE", torch_threads, arguments.device, port, decode_threads=decoding)
            environment = dict(server.environment) | ({"OMP_WAIT_POLICY": waiting} if waiting else {})
            server = Server(server.name, "ours", 8, server.command, server.path, server.body, environment)
            print(f"round {number + 1}: {trial}", flush=True)
            with running(server, port, folder) as url:
                ask(url, server)
                wrk(url, server, 8, 2, folder, stages=False)
                points[trial].append(wrk(url, server, 8, arguments.seconds, folder, stages=False))
    rows = [
        {"torch": t, "decode": d, "omp_wait": w or "default", **summary(runs)} for (t, d, w), runs in points.items()
    ]
    return {"machine": machine, "rounds": arguments.rounds, "seconds": arguments.seconds, "clients": 8, "rows": rows}


def _versions(venv: Path) -> dict[str, str]:
    """Of what is installed for the peers, by their folders' names."""
    found = {}
    for folder in [
        *venv.glob("lib/python*/site-packages"),
        *(Path(p) for p in sys.path if p.endswith("site-packages")),
    ]:
        for package in ("litserve", "bentoml", "torchserve", "ray"):
            for info in folder.glob(f"{package}-*.dist-info"):
                found.setdefault(package, info.name.removeprefix(f"{package}-").removesuffix(".dist-info"))
    return found


# ------------------------------------------------------------------------------------------------------------- tables
def tables(result: Mapping[str, Any]) -> list[report.Table]:
    """For the page and the terminal."""
    made = []
    for run in result.get("runs", {}).values():
        made += [_points(run), _ratios(run)]
    if threads := result.get("threads"):
        made.append(
            report.Table(
                f"Threads: our service on LITE, {threads['clients']} clients. {report.where(threads['machine'])}.",
                ("torch's threads / decoding threads / OMP_WAIT_POLICY", "requests/s", "p50 ms", "p99 ms"),
                [
                    (
                        f"{row['torch']} / {row['decode']} / {row['omp_wait']}",
                        _rate(row["requests_per_s"]),
                        f"{row['p50'] * 1000:.1f}",
                        f"{row['p99'] * 1000:.1f}",
                    )
                    for row in threads["rows"]
                ],
            )
        )
    return made


def _rate(found: Mapping[str, float]) -> str:
    digits = 2 if found["median"] < 10 else 1
    return f"{found['median']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def _points(run: Mapping[str, Any]) -> report.Table:
    rows = []
    for row in run["rows"]:
        who = f"{row['name']}, at most {row['batch']}, ({ENGINES[row['engine']]}) {row['engine']}"
        if row["name"] == "frcnn-service":
            who = f"this service, {row.get('form', '').partition('.')[0] or 'not started'}"
        if "failed" in row:
            rows.append((who, row["failed"], *[""] * 6))
        for clients, point in row["clients"].items():
            errors = ", ".join(f"{count} {kind}" for kind, count in point["errors"].items()) or "none"
            times = (f"{point[name] * 1000:,.1f}" for name in ("p50", "p95", "p99"))
            rows.append((who, clients, _rate(point["requests_per_s"]), str(point["requests"]), *times, errors))
    versions = ", ".join(f"{name} {version}" for name, version in run["peers"].items())
    return report.Table(
        f"{run['preset']}: a JPEG of 640 x 480, {run['rounds']} rounds of {run['seconds']:g} s or longer. "
        f"{report.where(run['machine'])}; {versions}.",
        ("server", "clients", "requests/s", "requests", "p50 ms", "p95 ms", "p99 ms", "errors"),
        rows,
    )


def _ratios(run: Mapping[str, Any]) -> report.Table:
    """Ours over the best peer at its better batch size, by engine and clients; and what HTTP costs."""
    mine = next((row for row in run["rows"] if row["name"] == "frcnn-service" and "failed" not in row), None)
    rows = []
    for clients, own in (mine["clients"] if mine else {}).items():
        for engine, letter in ENGINES.items():
            rivals = [
                (row["clients"][clients], row)
                for row in run["rows"]
                if row["name"] != "frcnn-service" and row["engine"] == engine and clients in row["clients"]
            ]
            rivals = [rival for rival in rivals if rival[0]["requests"]]
            if not rivals:
                continue
            point, best = max(rivals, key=lambda rival: rival[0]["requests_per_s"]["median"])
            ratio = own["requests_per_s"]["median"] / point["requests_per_s"]["median"]
            rows.append(
                (
                    f"requests/s at {clients} clients to the best peer ({letter}), {best['name']} at {best['batch']}",
                    f"{ratio:.2f}x",
                    f"p99 {own['p99'] * 1000:,.1f} ms to {point['p99'] * 1000:,.1f} ms",
                )
            )
        if own["overhead"] is not None:
            rows.append(
                (
                    f"HTTP overhead at {clients} client: p50 less the engine's part",
                    f"{own['overhead'] * 1000:.2f} ms",
                    f"p50 {own['p50'] * 1000:.1f} ms, engine {own['engine'] * 1000:.1f} ms",
                )
            )
    return report.Table(
        f"{run['preset']}: this service against the best of them.", ("what", "figure", "of which"), rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(pairs.PRESETS), choices=pairs.PRESETS)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10, help="of a point, at least")
    parser.add_argument("--most", type=float, default=180, help="seconds of a point, at most")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's, everywhere")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--venv", type=Path, default=VENV, help="where the peers are installed")
    parser.add_argument("--threads-table", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers that were started are ended
    see_project(arguments.venv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = report.load("serve")
        if arguments.threads_table:
            result["threads"] = threads_table(arguments, folder)
            report.save("serve", result)
        else:
            for preset in arguments.presets:
                run = compare(preset, arguments, folder)
                whole = set(arguments.peers) == set(PEERS) and set(arguments.engines) == set(ENGINES)
                part = "" if whole else f"/{'+'.join(arguments.peers)}/{'+'.join(arguments.engines)}"
                result.setdefault("runs", {})[f"{preset}{part}/{report.vectors(run['machine'])}"] = run
                report.save("serve", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
