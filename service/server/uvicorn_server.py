"""uvicorn with a graceful shutdown: every accepted request is answered before the process ends.

At SIGTERM (or Ctrl-C) the socket stays open: accepted requests are answered, new ones get 503 with a Retry-After, and
then the process exits with 0. A second signal, or the end of the grace period, ends it at once with 1, and the log says
how many requests were dropped. A signal while the detector loads ends it within seconds with 0. A permanent failure of
the detector ends it with 3, for its supervisor to start another. Where it does not start, the code tells whether a
restart may help (``service/exit_codes.py``). Whatever hangs, the process ends a few seconds after its grace period.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType
from typing import NoReturn, cast

import uvicorn
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from model.runtime.malloc import configure_malloc
from service.exit_codes import DETECTOR_FAILED, DONE, NOT_STARTED, code_for
from service.inference.pipeline import Pipeline
from service.server.http_protocol import LimitedHttpProtocol
from service.server.process import (
    ForcedExit,
    connection_limit,
    end_process,
    exclude_from_garbage_collection,
    raise_file_limit,
)
from service.server.tls_listener import TlsListener, listening_sockets
from service.settings import PREFIX, Settings, SettingsError

log = logging.getLogger("frcnn.server")

_FLUSH_SECONDS = 5  # for the last bytes of the last responses
_MARGIN_SECONDS = 3.0  # for the app's own end
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
                limit_concurrency=settings.max_connections,
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
        self._signals = 0
        self._owns_process = False
        self._draining: asyncio.Task[None] | None = None
        self._drained = False
        self._forced_exit = ForcedExit(self._forced_exit_code, self._report_dropped)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pipeline.batcher.on_failure = self._on_detector_failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app and then listen, as uvicorn does, which would end the process with 3 where either fails."""
        assert sockets is None
        self._loop = asyncio.get_running_loop()
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            self.should_exit = True
            return
        try:
            self.servers = [await self._listen(self._loop)]
        except OSError as error:
            log.error("the service cannot listen at its address", extra={"reason": str(error)})
            await self.lifespan.shutdown()
            self.should_exit = True
            return
        if self._owns_process:
            exclude_from_garbage_collection()
        self._log_started_message(self.servers[0].sockets)
        self.started = True

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Server:
        config = self.config

        def protocol() -> LimitedHttpProtocol:
            return LimitedHttpProtocol(config, self.server_state, self.lifespan.state, loop)

        if config.ssl is None:
            return await loop.create_server(protocol, config.host, config.port, backlog=config.backlog)
        sockets = listening_sockets(str(config.host), config.port, config.backlog)
        return cast(asyncio.Server, TlsListener(sockets, config.ssl, protocol, config.limit_concurrency or 1024))

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
        """Serve, and then end the process with a code of ``service/exit_codes.py``."""
        self._owns_process = True
        configure_malloc()
        self.config.limit_concurrency = connection_limit(self.config.limit_concurrency or 0, raise_file_limit())
        self._forced_exit.start()
        try:
            self.run()
        except Exception:
            log.exception("the server has failed")
            end_process(NOT_STARTED)
        end_process(self.exit_code if self.started else self._start_code)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal. It is not added to uvicorn's list, which would raise it again and change the exit code.

        It may have interrupted any code, so that nothing here may wait for a lock.
        """
        self._signals += 1
        if self._signals > 1:
            self._forced_exit.within(0, "a second signal came")
        elif self._loop is None or not self.started:
            self.should_exit = True
            self._forced_exit.within(_FLUSH_SECONDS, "the detector still loads")
        else:
            self._forced_exit.within(self._grace + _FLUSH_SECONDS + _MARGIN_SECONDS, "the end takes too long")
            self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        log.info("draining", extra={"waiting": self._pipeline.batcher.slots_in_use, "grace_seconds": self._grace})
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._grace):
                await self._pipeline.drain()
        except TimeoutError:
            self._forced_exit.within(0, "the grace period is over")
            return
        log.info("drained")
        self._drained = True
        self.should_exit = True

    def _forced_exit_code(self) -> int:
        if self.exit_code:
            return self.exit_code
        return DONE if self._drained or not self.started else NOT_STARTED

    def _report_dropped(self, reason: str) -> None:
        log.error("exit at once", extra={"reason": reason, "dropped": self._pipeline.batcher.slots_in_use})
        logging.shutdown()

    def _on_detector_failure(self) -> None:
        """Shut down: the responses that report the failure are still sent."""
        if self.exit_code:
            return
        log.error("the detector has failed: the process ends, for its supervisor to start another")
        self.exit_code = DETECTOR_FAILED
        self.should_exit = True
        self._forced_exit.within(2 * _FLUSH_SECONDS, "the detector has failed")


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
