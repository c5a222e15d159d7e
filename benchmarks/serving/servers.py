"""The servers that are compared: ours, and LitServe, Ray Serve, BentoML and TorchServe; how each starts and ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.lib import models
from benchmarks.lib.images import cat_jpeg
from benchmarks.lib.results import ROOT
from benchmarks.lib.service import COMMAND, environment_of

VENV = ROOT / "benchmarks/.cache/peers"
PEERS = ("LitServe", "Ray Serve", "BentoML", "TorchServe")
OURS = "frcnn-service"
START_SECONDS = 600.0  # that a server may take until its first answer
REFUSALS = (400, 405, 413, 415, 422)  # no server says so because it is still loading


class Broken(Exception):
    """Raised with the reason where a server cannot be measured."""


@dataclass(frozen=True)
class Server:
    """One process tree to measure.

    engine: ``torchvision`` or ``ours``. body: what is posted, and its content type. environment: over this process's.
    """

    name: str
    engine: str
    batch: int
    command: Sequence[str]
    path: str
    body: tuple[bytes, str]
    environment: Mapping[str, str] = field(default_factory=dict)


def our_server(preset: str, threads: int, device: str, port: int, **settings: Any) -> Server:
    """Return the service as the command line runs it."""
    settings = {
        "port": port,
        "weights": models.checkpoint(preset),
        "torch_threads": threads,
        "device": device,
        "timeout_ms": 600_000,
        "log_level": "error",
    } | settings
    batch = int(settings.get("max_batch", 8))
    return Server(OURS, "ours", batch, COMMAND, "/detect", (cat_jpeg(), "image/jpeg"), environment_of(settings))


def peer_server(
    name: str, preset: str, engine: str, batch: int, threads: int, port: int, folder: Path, venv: Path
) -> Server:
    """Return a peer; raises ``Broken`` where it is not installed."""
    python, body, path = str(venv / "bin/python"), (cat_jpeg(), "image/jpeg"), "/predict"
    environment = {
        "PEER_ENGINE": engine,
        "PEER_PRESET": preset,
        "PEER_BATCH": str(batch),
        "PEER_THREADS": str(threads),
        "PEER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    if name == "Ray Serve":
        return Server(name, engine, batch, (sys.executable, "-m", "benchmarks.peers.rayserve"), path, body, environment)
    if not Path(python).exists():
        raise Broken(f"there is no {venv.relative_to(ROOT) if venv.is_relative_to(ROOT) else venv.name}")
    command: tuple[str, ...]
    if name == "LitServe":
        command = (python, "-m", "benchmarks.peers.lit")
    elif name == "BentoML":
        command = (str(venv / "bin/bentoml"), "serve", "benchmarks.peers.bento:Detect", "--working-dir", str(ROOT))
        command += ("--host", "127.0.0.1", "--port", str(port))
        form = httpx.Request("POST", "http://x", files={"images": ("image.jpg", body[0], "image/jpeg")})
        body = (form.read(), form.headers["content-type"])
        environment |= {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bento")}
    else:
        command = _torchserve(venv, folder, batch, port)
        path = "/predictions/detector"
    return Server(name, engine, batch, command, path, body, environment)


def _torchserve(venv: Path, folder: Path, batch: int, port: int) -> tuple[str, ...]:
    """Pack the handler, write the configuration, and return the command that starts it."""
    if not shutil.which("java"):
        raise Broken("there is no java; Debian has it as default-jre-headless")
    store = folder / f"torchserve-{batch}"
    store.mkdir(exist_ok=True)
    handler = ROOT / "benchmarks/peers/torchserve_handler.py"
    pack = [venv / "bin/torch-model-archiver", "--model-name", "detector", "--version", "1.0", "--force"]
    pack += ["--handler", handler, "--export-path", store]
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


def share_packages(venv: Path) -> None:
    """Let the peers' environment find the project's torch, behind its own packages."""
    for packages in venv.glob("lib/python*/site-packages"):
        own = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "frcnn-project.pth").write_text("\n".join(own) + "\n")


def installed_versions(venv: Path) -> dict[str, str]:
    """Return the peers' versions, by the names of their installed packages' folders."""
    versions: dict[str, str] = {}
    folders = [*venv.glob("lib/python*/site-packages"), *(Path(p) for p in sys.path if p.endswith("site-packages"))]
    for folder in folders:
        for package in ("litserve", "bentoml", "torchserve", "ray"):
            for info in folder.glob(f"{package}-*.dist-info"):
                versions.setdefault(package, info.name.removeprefix(f"{package}-").removesuffix(".dist-info"))
    return versions


@contextlib.contextmanager
def running(server: Server, port: int, folder: Path) -> Iterator[str]:
    """Run a server until the block ends; yields the URL to post to, once it has answered. Raises ``Broken``."""
    log = folder / f"{server.name.replace(' ', '-')}.log"
    url = f"http://127.0.0.1:{port}{server.path}"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(part) for part in server.command],
            env=os.environ | dict(server.environment),
            cwd=folder if server.name == "TorchServe" else ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for_answer(url, server, process, log)
        yield url
    finally:
        _end(process)


def _wait_for_answer(url: str, server: Server, process: subprocess.Popen[Any], log: Path) -> None:
    until, status = time.monotonic() + START_SECONDS, 0
    while True:
        if process.poll() is not None:
            raise Broken(f"it ended with {process.returncode}: {_last_line(log)}")
        if time.monotonic() > until:
            last = f"the last was {status}" if status else _last_line(log)
            raise Broken(f"no answer of 200 in {START_SECONDS:g} s: {last}")
        with contextlib.suppress(httpx.HTTPError):
            status = post(url, server).status_code
            if status == 200:
                return
            if status in REFUSALS:
                raise Broken(f"it refuses the image with {status}")
        time.sleep(0.5)


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it has started."""
    family = _family(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    for child in alive:
        with contextlib.suppress(psutil.Error):
            child.kill()


def _family(leader: int) -> list[psutil.Process]:
    """Return a process's descendants, and the rest of its session: a child whose parent has ended has another."""
    family = set()
    with contextlib.suppress(psutil.Error):
        family |= set(psutil.Process(leader).children(recursive=True))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.pid != leader:
                family.add(process)
    return list(family)


def _last_line(log: Path) -> str:
    """Return the last line of a log that names an error, or the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error" in line] or lines
    return errors[-1][:200] if errors else "its log is empty"


def post(url: str, server: Server) -> httpx.Response:
    """Post the image once."""
    body, kind = server.body
    return httpx.post(url, content=body, headers={"Content-Type": kind, "Accept": "application/json"}, timeout=600)
