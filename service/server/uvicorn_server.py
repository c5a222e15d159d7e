"""uvicorn, with an end that loses nothing.

At SIGTERM (or Ctrl-C) the socket stays open: accepted requests are answered, new ones are told 503 and when to come
back, and then the process exits with 0. A second signal, or the end of the grace period, ends it at once with 1 and
says what was dropped. A detector that has failed for good ends it with 3, for its supervisor to start another. Where it
does not start, the code tells whether a restart may help (``service/exit_codes.py``).
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
from service.server.http_protocol import BoundedHead
from service.settings import PREFIX, Settings, SettingsError

log = logging.getLogger("frcnn.server")

_LAST_BYTES = 5  # seconds for the last bytes of the last answers
# Seconds that a connection may be idle: longer than clients and proxies keep one (httpx 5, nginx and AWS's balancers
# 60), so that they close it and not we, who would do so while their next request is on its way.
_IDLE = 75


class Server(uvicorn.Server):
    """One process, one event loop, one app. ``run_to_the_end`` is the program; ``run`` is uvicorn's, for tests.

    Raises ``SettingsError`` where a file for TLS cannot be read.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        _check_tls_files(settings)
        # log_config=None: the log is configured by then, and uvicorn's own access lines would repeat ours.
        super().__init__(
            uvicorn.Config(
                self._tell_no_traceback,
                interface="asgi3",  # uvicorn cannot tell of a method
                lifespan="on",
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_LAST_BYTES,
                timeout_keep_alive=_IDLE,
                http=BoundedHead,
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
        self._pipeline.batcher.on_death = self._die

    async def startup(self, *args: object, **kwargs: object) -> None:
        """uvicorn's; a signal that comes while the detector loads simply ends the process afterwards."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(*args, **kwargs)  # type: ignore[arg-type]
        except SystemExit:  # the app's start has failed, or the port is taken; uvicorn's code for both is 3
            self.should_exit = True

    async def _tell_no_traceback(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app, but that a start that fails is not told a second time, by a traceback: the app has logged it."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failed = False

        async def send_briefly(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed, message = True, {"type": message["type"]}
            await send(message)

        try:
            await self._app(scope, receive, send_briefly)
        except Exception as error:
            if not failed:
                raise
            self._start_code = code_for(error)

    def run_to_the_end(self) -> NoReturn:
        """Serve, and end the process with a code of ``service/exit_codes.py``.

        Python's own end tears down the threads that are still inside torch (one that hangs on the device), and C++
        answers that with SIGABRT: so where there are any, the process ends without it.
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
        """A signal has come. Not kept in uvicorn's list: it would raise the signal again, and the exit code with it."""
        if self._loop is None or not self.started:
            self.should_exit = True
        elif self._draining is None:
            # Out of the signal handler first: it may have interrupted anything.
            self._loop.call_soon_threadsafe(self._begin_to_drain)
        else:
            self._drop("a second signal came")

    def _begin_to_drain(self) -> None:
        if self._draining is None:
            log.info("draining", extra={"waiting": self._pipeline.batcher.waiting, "grace_seconds": self._grace})
            self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._grace):
                await self._pipeline.drain()
        except TimeoutError:
            self._drop("the grace period is over")
        log.info("drained")
        self.should_exit = True

    def _drop(self, reason: str) -> None:
        """End the process here and now: threads may hang on the device, and nobody waits for them any more."""
        log.error("exit at once", extra={"reason": reason, "dropped": self._pipeline.batcher.waiting})
        logging.shutdown()
        os._exit(NOT_STARTED)

    def _die(self) -> None:
        """The worker is dead; the answers that say so still go out, but nothing may keep the process from ending."""
        if self.exit_code:
            return
        log.error("the detector has failed: the process ends, for its supervisor to start another")
        self.exit_code = DETECTOR_FAILED
        self.should_exit = True
        last = threading.Timer(2 * _LAST_BYTES, os._exit, (self.exit_code,))
        last.daemon = True
        last.start()


def _check_tls_files(settings: Settings) -> None:
    """Raises ``SettingsError`` where one cannot be read: what OpenSSL says of it does not name the file."""
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
