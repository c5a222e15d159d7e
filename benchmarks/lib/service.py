"""Start the service in a process of its own, wait for it, and end it. Needs no package beside the service's."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.lib.results import ROOT

COMMAND = (sys.executable, "-m", "service.cli", "serve")  # as frcnn serve does, installed or not


@dataclass
class Service:
    """A running service."""

    url: str
    process: subprocess.Popen[Any]


@contextlib.contextmanager
def running_service(
    settings: Mapping[str, object],
    *options: str,
    seconds: float = 300,
    environment: Mapping[str, str] | None = None,
    log: IO[Any] | int | None = None,
) -> Iterator[Service]:
    """Run ``frcnn serve`` on a free port until the block ends; yields once it is ready.

    settings: by name without the prefix, such as ``{"weights": "lite-voc20"}``. seconds: that it may take to be ready.
    log: where its output goes; default: to this process's. Raises ``RuntimeError`` where it does not start.
    """
    with started_service(settings, *options, environment=environment, log=log) as service:
        wait_until_ready(service.url, service.process, seconds)
        yield service


@contextlib.contextmanager
def started_service(
    settings: Mapping[str, object],
    *options: str,
    environment: Mapping[str, str] | None = None,
    log: IO[Any] | int | None = None,
) -> Iterator[Service]:
    """Do the same without waiting until it is ready."""
    port = free_port()
    variables = environment_of({"port": port, "log_level": "error"} | dict(settings))
    process = subprocess.Popen(
        [*COMMAND, *options],
        env=os.environ | variables | dict(environment or {}),
        cwd=ROOT,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield Service(f"http://127.0.0.1:{port}", process)
    finally:
        stop(process)


def environment_of(settings: Mapping[str, object]) -> dict[str, str]:
    """Return settings as the environment variables that the service reads."""
    return {f"FRCNN_{name.upper()}": str(value) for name, value in settings.items()}


def wait_until_ready(url: str, process: subprocess.Popen[Any], seconds: float) -> None:
    """Return at the first 200 of /readyz. Raises ``RuntimeError`` where the process ends or is not in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"The service ended with {process.returncode} before it was ready.")
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{url}/readyz", timeout=5) as response,
        ):
            if response.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"The service was not ready within {seconds:g} s.")


def stop(process: subprocess.Popen[Any]) -> int:
    """End a process: SIGTERM, a minute to finish its requests, then SIGKILL. Returns its exit code."""
    process.terminate()
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def free_port() -> int:
    """Return the first of three free ports in a row, below those that systems hand out to whoever asks for any.

    Ray's own parts ask for any at every start: one that was free just now may be theirs a moment later.
    """
    for port in random.sample(range(20_000, 30_000, 3), 100):
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for number in range(3):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            return port
    raise RuntimeError("There are no three free ports in a row.")


def descendants(leader: int) -> dict[int, str]:
    """Return the first word of the command line of each process that descends from ``leader``, by process id."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError, IndexError):  # it has just ended
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            names[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()

    def descends(pid: int) -> bool:
        while pid > 1 and pid != leader:
            pid = parents.get(pid, 0)
        return pid == leader

    return {pid: name for pid, name in names.items() if pid != leader and descends(pid)}
