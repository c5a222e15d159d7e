"""uvicorn with a graceful shutdown: every accepted request is answered before the process ends.

At SIGTERM (or Ctrl-C) the socket stays open: accepted requests are answered, new ones get 503 with a Retry-After, and
then the process exits with 0. A second signal, or the end of the grace period, ends it at once with 1, and the log says
how many requests were dropped. A permanent failure of the detector ends it with 3, for its supervisor to start another.
Where it does not start, the code tells whether a restart may help (``service/exit_codes.py``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from model.runtime.malloc import configure_malloc
from service.exit_codes import DETECTOR_FAILED, DONE, NOT_STARTED, code_for
from service.inference.pipeline import Pipeline
from service.server.http_protocol import LimitedHttpProtocol
from service.settings import PREFIX, Settings, SettingsError

log = logging.getLogger("frcnn.server")

_FLUSH_SECONDS = 5  # for the last bytes of the last responses
# An idle connection is kept longer than clients and proxies keep theirs (httpx 5 s, nginx and AWS load balancers 60 s),
# so that they close it first. If the server did, a request that a client sends at that moment would be lost.
_KEEP_ALIVE_SECONDS = 75


class Server(uvicorn.Server):
    """Serve one app in one process with one event loop: ``run_until_exit`` is what ``frcnn serve`` calls.

    Raises ``SettingsError`` where a file for TLS cannot be read.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        _check_tls_files(settings)
        # log_config=None, access_log=False: logging is configured already, and the app logs each request.
        super().__init__(
            uvicorn.Config(
                self._app_with_brief_startup_errors,
                interface="asgi3",  # uvicorn does not detect it for a method
                lifespan="on",
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_FLUSH_SECONDS,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                http=LimitedHttpProtocol,
                ws="none",
                ssl_certfile=settings.tls_cert_file,
                ssl_keyfile=settings.tls_key_file,
            )
        )
        self.exit_code = DONE
        self._app = app
        self._start_code = NOT_STARTED
        self._pipeline: Pipeline = app.state.pipeline
        self._grace = settings.drain_seconds
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pipeline.batcher.on_death = self._on_detector_failure

    async def startup(self, *args: object, **kwargs: object) -> None:
        """Start as uvicorn does; a signal that arrives while the detector loads ends the process afterwards."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(*args, **kwargs)  # type: ignore[arg-type]
        except SystemExit:  # the app could not start, or the port is in use; uvicorn exits with 3 for both
            self.should_exit = True

    async def _app_with_brief_startup_errors(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; hide the traceback of a failed startup from uvicorn, since the app has logged the failure."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failed = False

        async def send_without_traceback(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed, message = True, {"type": message["type"]}
            await send(message)

        try:
            await self._app(scope, receive, send_without_traceback)
        except Exception as error:
            if not failed:
                raise
            self._start_code = code_for(error)

    def run_until_exit(self) -> NoReturn:
        """Serve, and then end the process with a code of ``service/exit_codes.py``.

        Where daemon threads are left (one may hang on the device), the process ends without Python's finalization,
        which would stop them inside torch, and C++ aborts the process (SIGABRT) when that happens.
        """
        configure_malloc()
        self.run()
        code = self.exit_code if self.started else self._start_code
        if any(thread.daemon for thread in threading.enumerate()):
            logging.shutdown()
            sys.stdout.flush()
            os._exit(code)
        sys.exit(code)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal. It is not added to uvicorn's list, which would raise it again and change the exit code."""
        if self._loop is None or not self.started:
            self.should_exit = True
        elif self._draining is None:
            # Not in the signal handler itself, which may have interrupted any code.
            self._loop.call_soon_threadsafe(self._start_draining)
        else:
            self._exit_at_once("a second signal came")

    def _start_draining(self) -> None:
        if self._draining is None:
            log.info("draining", extra={"waiting": self._pipeline.batcher.waiting, "grace_seconds": self._grace})
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._grace):
                await self._pipeline.drain()
        except TimeoutError:
            self._exit_at_once("the grace period is over")
        log.info("drained")
        self.should_exit = True

    def _exit_at_once(self, reason: str) -> None:
        """End the process without waiting for its threads, which may hang on the device."""
        log.error("exit at once", extra={"reason": reason, "dropped": self._pipeline.batcher.waiting})
        logging.shutdown()
        os._exit(NOT_STARTED)

    def _on_detector_failure(self) -> None:
        """Shut down: the responses that report the failure are still sent, and a timer ends the process in any case."""
        if self.exit_code:
            return
        log.error("the detector has failed: the process ends, for its supervisor to start another")
        self.exit_code = DETECTOR_FAILED
        self.should_exit = True
        forced_exit = threading.Timer(2 * _FLUSH_SECONDS, os._exit, (self.exit_code,))
        forced_exit.daemon = True
        forced_exit.start()


def _check_tls_files(settings: Settings) -> None:
    """Raise ``SettingsError`` where a file cannot be read: OpenSSL's own error does not name the file."""
    for name in ("tls_cert_file", "tls_key_file"):
        path = getattr(settings, name)
        if path is None:
            continue
        try:
            path.open("rb").close()
        except OSError as error:
            raise SettingsError(
                f"{PREFIX}{name.upper()} is {str(path)!r}; it cannot be read ({error.strerror})."
            ) from None
