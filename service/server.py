"""uvicorn, with an end that loses nothing.

At SIGTERM (or Ctrl-C) the socket stays open: accepted requests are answered, new ones are told 503 and when to come
back, and then the process exits with 0. A second signal, or the end of the grace period, ends it at once with 1 and
says what was dropped. A detector that has failed for good ends it with 3, for its supervisor to start another.
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

from service.connection import BoundedHead
from service.heap import share_one_heap
from service.pipeline import Pipeline
from service.settings import Settings

log = logging.getLogger("frcnn.server")

_LAST_BYTES = 5  # seconds for the last bytes of the last answers
# Seconds that a connection may be idle: longer than clients and proxies keep one (httpx 5, nginx and AWS's balancers
# 60), so that they close it and not we, who would do so while their next request is on its way.
_IDLE = 75


class Server(uvicorn.Server):
    """One process, one event loop, one app. ``run_to_the_end`` is the program; ``run`` is uvicorn's, for tests."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        # log_config=None: the log is configured by then, and uvicorn's own access lines would repeat ours.
        super().__init__(
            uvicorn.Config(
                app,
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
        self.exit_code = 0
        self._pipeline: Pipeline = app.state.pipeline
        self._grace = settings.drain_seconds
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pipeline.batcher.on_death = self._die

    async def startup(self, *args: object, **kwargs: object) -> None:
        """uvicorn's; a signal that comes while the detector loads simply ends the process afterwards."""
        self._loop = asyncio.get_running_loop()
        await super().startup(*args, **kwargs)  # type: ignore[arg-type]

    def run_to_the_end(self) -> NoReturn:
        """Serve, and end the process: with 0 when drained, 1 where it did not start, 3 where the detector has failed.

        Python's own end tears down the threads that are still inside torch (one that hangs on the device), and C++
        answers that with SIGABRT: so where there are any, the process ends without it.
        """
        share_one_heap()
        self.run()
        code = self.exit_code if self.started else 1
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
        os._exit(1)

    def _die(self) -> None:
        """The worker is dead; the answers that say so still go out, but nothing may keep the process from ending."""
        if self.exit_code:
            return
        log.error("the detector has failed: the process ends, for its supervisor to start another")
        self.exit_code = 3
        self.should_exit = True
        last = threading.Timer(2 * _LAST_BYTES, os._exit, (self.exit_code,))
        last.daemon = True
        last.start()
