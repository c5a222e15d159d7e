"""A connection that says what is wrong with a request which no route will see.

uvicorn counts neither the bytes of a request's head nor its seconds: a client that trickles a header a minute, or never
stops sending them, would hold a socket for ever, or all memory. And what is not HTTP, or has an address that its parser
does not take, uvicorn answers in plain text, where every other answer of ours is a problem. What follows the head, the
pipeline bounds.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.request_id import request_id_for
from service.errors import BadRequest, problem_response

log = logging.getLogger("frcnn.connection")


class BoundedHead(HttpToolsProtocol):
    """uvicorn's connection, ended where a head takes over ``HEAD_SECONDS`` or ``HEAD_BYTES``, give or take a read.

    Where it is refused for its bytes, or is no HTTP, it is answered with 400. A socket that is closed on bytes which
    nobody has read takes the answer with it, so up to ``LINGER_BYTES`` more are read for up to ``LINGER_SECONDS``.
    """

    HEAD_SECONDS = 10.0
    HEAD_BYTES = 64 * 1024
    LINGER_SECONDS = 1.0
    LINGER_BYTES = 1024 * 1024

    _patience: asyncio.TimerHandle | None = None  # runs while a head is awaited
    _head_bytes = 0
    _refused = False
    _left = LINGER_BYTES

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._patience is None:  # the next request on a connection that was kept open
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._left -= len(data)
            if self._left < 0:
                self.transport.close()
            return
        if self._patience is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._patience is not None and self._head_bytes > self.HEAD_BYTES:
            self._refuse(f"its first line and headers are over {self.HEAD_BYTES // 1024} KiB")

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, where its parser gives up."""
        self._refuse("it is not HTTP, or its address is too long or malformed")

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._patience = self.loop.call_later(self.HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        log.warning("a connection is closed: the request's head is too slow")
        self._stop_waiting()
        self.transport.close()

    def _refuse(self, why: str) -> None:
        self._stop_waiting()
        self._refused = True
        request_id = request_id_for(Headers({}))
        log.warning("a request cannot be read: %s", why, extra={"request_id": request_id})
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self.pipeline or not cycle.more_body:  # whole requests before it are being answered: the last ends it
                cycle.keep_alive = False
                return
            cycle.disconnected = True  # its own body is what cannot be read
            cycle.message_event.set()
        detail = f"The request cannot be read: {why}. Send HTTP/1.1, and what is long in the body."
        answer = problem_response(BadRequest(detail), request_id)
        answer.headers.update({"Connection": "close", "X-Request-ID": request_id})
        head = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
        self.transport.write(STATUS_LINE[answer.status_code] + head + b"\r\n" + bytes(answer.body))
        self.loop.call_later(self.LINGER_SECONDS, self.transport.close)
