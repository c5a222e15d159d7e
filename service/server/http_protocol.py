"""uvicorn's HTTP protocol with limits on the head of a request, and problem documents for requests it cannot parse.

uvicorn limits neither the bytes nor the seconds of a request's head (first line and headers): a client that sends a
header a minute, or never stops sending headers, would hold a socket forever, or use up the memory. And where its parser
refuses a request, uvicorn responds in plain text, while all other errors of this service are problem documents. The
body is limited in ``service/api/request.py``.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.problems import problem_response
from service.api.request_id import request_id_for
from service.errors import BadRequest

log = logging.getLogger("frcnn.connection")


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection, closed where a head takes over ``HEAD_SECONDS`` or ``HEAD_BYTES`` (plus at most one read).

    A head that is too long, or no HTTP, is answered with 400 before the connection is closed. Closing a socket that has
    unread bytes discards the response with them, so up to ``LINGER_BYTES`` more are read for up to ``LINGER_SECONDS``.
    """

    HEAD_SECONDS = 10.0
    HEAD_BYTES = 64 * 1024
    LINGER_SECONDS = 1.0
    LINGER_BYTES = 1024 * 1024

    _head_timer: asyncio.TimerHandle | None = None  # runs while a head is being received
    _head_bytes = 0
    _refused = False
    _bytes_to_discard = LINGER_BYTES

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:  # another request on a connection that was kept open
            self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._bytes_to_discard -= len(data)
            if self._bytes_to_discard < 0:
                self.transport.close()
            return
        if self._head_timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None and self._head_bytes > self.HEAD_BYTES:
            self._refuse(f"its first line and headers are over {self.HEAD_BYTES // 1024} KiB")

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser refused, in place of uvicorn's plain text."""
        self._refuse("it is not HTTP, or its address is too long or malformed")

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def _start_head_timer(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.HEAD_SECONDS, self._close_slow_connection)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_slow_connection(self) -> None:
        log.warning("a connection is closed: the request's head is too slow")
        self._stop_head_timer()
        self.transport.close()

    def _refuse(self, reason: str) -> None:
        self._stop_head_timer()
        self._refused = True
        request_id = request_id_for(Headers({}))
        log.warning("a request cannot be read: %s", reason, extra={"request_id": request_id})
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            # Complete requests before this one are still being answered: the last response closes the connection.
            if self.pipeline or not cycle.more_body:
                cycle.keep_alive = False
                return
            # The unreadable bytes are the body of the request that is being answered.
            cycle.disconnected = True
            cycle.message_event.set()
        detail = f"The request cannot be read: {reason}. Send HTTP/1.1, and what is long in the body."
        response = problem_response(BadRequest(detail), request_id)
        response.headers.update({"Connection": "close", "X-Request-ID": request_id})
        head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self.transport.write(STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body))
        self.loop.call_later(self.LINGER_SECONDS, self.transport.close)
