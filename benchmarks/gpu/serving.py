"""The service on this device, through HTTP: requests a second and how long they take, from clients in threads.

The clients are one Python process: beyond some thousand requests a second it is they who are measured.
"""

from __future__ import annotations

import http.client
import importlib.util
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from benchmarks import pairs, report
from benchmarks.gpu.images import image
from benchmarks.gpu.section import Data, Point, Section, Skipped, attempt
from benchmarks.gpu.settings import Settings

_PACKAGE = "frcnn-service"
CLIENTS = (1, 8, 32, 128)
_NEEDED = ("fastapi", "uvicorn", "pydantic_settings", "orjson", "typer", "prometheus_client")
_START = 180.0


def free_port() -> int:
    """One that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(preset: str, settings: Settings, _: float) -> Data:
    """Start the service, drive it with more and more clients, and end it."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise Skipped(f"the service needs {', '.join(missing)}, which this machine has not")
    port = free_port()
    given = {
        "FRCNN_PORT": str(port),
        "FRCNN_WEIGHTS": pairs.checkpoint(preset),
        "FRCNN_DEVICE": settings.device,
        "FRCNN_LOG_LEVEL": "error",
        "FRCNN_TIMEOUT_MS": "60000",
    }
    command = [
        sys.executable,
        "-c",
        "from service.cli.main import app; app()",
        "serve",
    ]  # as frcnn does, installed or not
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as folder:
        given["PYTHONPATH"] = os.pathsep.join(filter(None, (metadata(Path(folder)), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(command, env=os.environ | given, cwd=report.ROOT, stdout=log, stderr=log)
        try:
            _ready(port, process, log)
            ready = time.monotonic() - begun
            file = io.BytesIO()
            Pillow.fromarray(image(480, 640, seed=3)).save(file, "JPEG", quality=90)
            seconds = 1.0 if settings.tiny else 8.0
            drive(port, file.getvalue(), 4, min(2.0, seconds))  # for warming up
            rows = [
                {"name": f"{clients} clients"} | attempt(partial(drive, port, file.getvalue(), clients, seconds))
                for clients in (CLIENTS[:2] if settings.tiny else CLIENTS)
            ]
        finally:
            report.stop(process)
    return {"ready_s": ready, "jpeg": "480 x 640", "rows": rows}


def metadata(folder: Path) -> str:
    """A place for Python's path that says the service's version, which it asks for; empty where it is installed."""
    try:
        version(_PACKAGE)
    except PackageNotFoundError:
        said = tomllib.loads((report.ROOT / "pyproject.toml").read_text())["project"]["version"]
        made = folder / f"{_PACKAGE.replace('-', '_')}-{said}.dist-info"
        made.mkdir()
        (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_PACKAGE}\nVersion: {said}\n")
        return str(folder)
    return ""


def _ready(port: int, process: subprocess.Popen[Any], log: Any) -> None:
    """Return once it answers; raises with the end of its log where it does not."""
    until = time.monotonic() + _START
    while process.poll() is None and time.monotonic() < until:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"the service does not start: {log.read()[-800:]}")


def drive(port: int, body: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """So many clients, each asking again once it is answered. Raises where nothing was answered with 200."""
    taken: list[float] = []
    statuses: Counter[str] = Counter()
    lock = threading.Lock()
    until = time.monotonic() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
        mine, seen = [], Counter[str]()
        while time.monotonic() < until:
            begun = time.perf_counter()
            try:
                connection.request("POST", "/detect", body, {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                answer.read()
                seen[str(answer.status)] += 1
                if answer.status == 200:
                    mine.append(time.perf_counter() - begun)
            except (OSError, http.client.HTTPException) as error:
                seen[type(error).__name__] += 1
                connection.close()
        connection.close()
        with lock:
            taken.extend(mine)
            statuses.update(seen)

    begun = time.monotonic()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lasted = time.monotonic() - begun
    if not taken:
        raise RuntimeError(f"no request was answered: {dict(statuses)}")
    p50, p99 = np.percentile(taken, (50, 99))
    return {
        "requests_per_s": len(taken) / lasted,
        "p50_ms": float(p50) * 1000,
        "p99_ms": float(p99) * 1000,
        "statuses": dict(statuses),
    }


def points(settings: Settings) -> list[Point]:
    presets: tuple[str, ...] = ("LITE",) if settings.tiny else ("LITE", "RESNET50_FPN")
    return [Point(preset, partial(measure, preset, settings)) for preset in presets]


SECTION = Section("http", points, seconds=420)
