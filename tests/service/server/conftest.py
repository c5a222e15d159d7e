"""Run the service's own server in a thread."""

import contextlib
import threading
from collections.abc import Iterator

from fastapi import FastAPI

from service.server.uvicorn_server import Server
from service.settings import Settings
from tests.service.exchange import wait_for


@contextlib.contextmanager
def served(app: FastAPI, settings: Settings) -> Iterator[int]:
    """Serve ``app`` and yield its port."""
    server = Server(app, settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, 30)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
