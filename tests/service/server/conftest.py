"""Run the service's own server in a thread."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from fastapi import FastAPI

from service.server.uvicorn_server import Server
from service.settings import Settings
from tests.service.exchange import wait_for


@contextlib.contextmanager
def running(server: Server) -> Iterator[int]:
    """Run ``server`` and yield its port."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, 30)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def served(app: FastAPI, settings: Settings) -> contextlib.AbstractContextManager[int]:
    """Serve ``app`` and yield its port."""
    return running(Server(app, settings))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1; return its file and its key's."""
    if which("openssl") is None:
        pytest.skip("needs the openssl command, to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    kind = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    make = f"openssl req -x509 {kind} -nodes -days 1 -keyout {key} -out {cert} -subj /CN=localhost"
    subprocess.run([*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return cert, key
