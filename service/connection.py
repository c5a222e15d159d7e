"""A connection whose request head is bounded: uvicorn counts neither its bytes nor its seconds.

A client that trickles a header a minute, or never stops sending them, would hold a socket for ever, or all memory. Such
a connection is closed without an answer. What follows the head, the pipeline bounds.
"""

from __future__ import annotations

import asyncio
import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger("frcnn.connection")


class BoundedHead(HttpToolsProtocol):
    """uvicorn's connection, closed where a head takes over ``HEAD_SECONDS`` or ``HEAD_BYTES``, give or take a read."""

    HEAD_SECONDS = 10.0
    HEAD_BYTES = 64 * 1024

    _patience: asyncio.TimerHandle | None = None  # runs while a head is awaited
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._patience is None:  # the next request on a connection that was kept open
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._patience is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._patience is not None and self._head_bytes > self.HEAD_BYTES:
            self._give_up("too long")

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._patience = self.loop.call_later(self.HEAD_SECONDS, self._give_up, "too slow")

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self, why: str) -> None:
        log.warning("a connection is closed: the request's head is %s", why)
        self._stop_waiting()
        self.transport.close()
