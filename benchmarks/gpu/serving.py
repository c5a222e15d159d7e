"""Measure the service on this device through HTTP: requests a second and latency, from clients in threads.

The clients are one Python process: beyond some thousand requests a second they are the limit.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import tempfile
import threading
import time
import tomllib
from collections import Counter
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.gpu.section import Data, Point, Section, Skipped, attempt
from benchmarks.gpu.settings import Settings
from benchmarks.lib import models
from benchmarks.lib.images import drawn_image, encode
from benchmarks.lib.results import ROOT
from benchmarks.lib.service import running_service

_PACKAGE = "frcnn-service"
CLIENTS = (1, 8, 32, 128)
_NEEDED = ("fastapi", "uvicorn", "pydantic_settings", "orjson", "typer", "prometheus_client")
_START_SECONDS = 180.0


def measure(preset: str, settings: Settings, _: float) -> Data:
    """Start the service, send requests from more and more clients, and end it."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise Skipped(f"the service needs {', '.join(missing)}, which are not installed")
    service_settings = {"weights": models.checkpoint(preset), "device": settings.device, "timeout_ms": 60_000}
    body = encode(Image.fromarray(drawn_image(480, 640, seed=3)), quality=90)
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join(filter(None, (metadata(Path(folder)), os.environ.get("PYTHONPATH"))))
        try:
            with running_service(
                service_settings, seconds=_START_SECONDS, environment={"PYTHONPATH": path}, log=log
            ) as service:
                ready = time.monotonic() - begin
                address = urlsplit(service.url).netloc
                seconds = 1.0 if settings.tiny else 8.0
                load(address, body, 4, min(2.0, seconds))  # for warming up
                rows = [
                    {"name": f"{clients} clients"} | attempt(partial(load, address, body, clients, seconds))
                    for clients in (CLIENTS[:2] if settings.tiny else CLIENTS)
                ]
        except RuntimeError as error:
            log.seek(0)
            raise RuntimeError(f"{error} {log.read()[-800:]}") from error
    return {"ready_s": ready, "jpeg": "480 x 640", "rows": rows}


def metadata(folder: Path) -> str:
    """Write the package's version, which the service reads, into ``folder`` and return it; "" where it is installed."""
    try:
        version(_PACKAGE)
    except PackageNotFoundError:
        number = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        info = folder / f"{_PACKAGE.replace('-', '_')}-{number}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_PACKAGE}\nVersion: {number}\n")
        return str(folder)
    return ""


def load(address: str, body: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """Post the image from so many clients, each again once it is answered. Raises where nothing was answered 200."""
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    lock = threading.Lock()
    until = time.monotonic() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection(address, timeout=90)
        own_latencies, own_statuses = [], Counter[str]()
        while time.monotonic() < until:
            begin = time.perf_counter()
            try:
                connection.request("POST", "/detect", body, {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                response.read()
                own_statuses[str(response.status)] += 1
                if response.status == 200:
                    own_latencies.append(time.perf_counter() - begin)
            except (OSError, http.client.HTTPException) as error:
                own_statuses[type(error).__name__] += 1
                connection.close()
        connection.close()
        with lock:
            latencies.extend(own_latencies)
            statuses.update(own_statuses)

    begin = time.monotonic()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lasted = time.monotonic() - begin
    if not latencies:
        raise RuntimeError(f"no request was answered with 200: {dict(statuses)}")
    p50, p99 = np.percentile(latencies, (50, 99))
    return {
        "requests_per_s": len(latencies) / lasted,
        "p50_ms": float(p50) * 1000,
        "p99_ms": float(p99) * 1000,
        "statuses": dict(statuses),
    }


def points(settings: Settings) -> list[Point]:
    """Return a point for each preset."""
    presets: tuple[str, ...] = ("LITE",) if settings.tiny else ("LITE", "RESNET50_FPN")
    return [Point(preset, partial(measure, preset, settings)) for preset in presets]


SECTION = Section("http", points, seconds=420)
