"""uvicorn's HTTP protocol with a bound on everything that a client can send, hold open or leave unread.

uvicorn bounds hardly anything of this, and where its parser refuses a request it responds in plain text, while all
other errors of this service are problem documents. A connection is always in one of these states, and one timer runs
for it:

    state    what happens on the connection                     bound                                   over it
    HEAD     first line and headers of a request arrive         HEAD_SECONDS, HEAD_BYTES, MAX_HEADERS   400, or closed
    BODY     a body arrives, its request is not answered        the app's; FRAMING_BYTES, TINY_CHUNKS   400
    ANSWER   all input is here, and the app works               the app's deadline
    REST     a body arrives, its request is answered            LINGER_SECONDS, LINGER_BYTES            closed
    IDLE     nothing; the client may send another request       timeout_keep_alive                      closed
    LINGER   nothing more will be sent; input is discarded      LINGER_SECONDS, LINGER_BYTES            closed
    UNREAD   the client does not read, also once the            UNREAD_BYTES read in each               aborted
             connection is closed with bytes that are unsent    UNREAD_SECONDS

Bytes are bounded to within one read (250 KiB). What a body may hold and how long it may take is bounded in
``service/api/request.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import logging
import sys
import termios
import time
import urllib.parse
import uuid
from collections import deque
from typing import Any, cast

import httptools
from starlette.datastructures import Headers
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.problems import problem_response
from service.api.request_id import request_id_for
from service.errors import BadRequest, ServiceError, Unavailable

log = logging.getLogger("frcnn.connection")


class State(enum.Enum):
    """What a connection waits for; the module's docstring has the table."""

    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWER = enum.auto()
    REST = enum.auto()
    IDLE = enum.auto()
    LINGER = enum.auto()
    UNREAD = enum.auto()


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection, in one of the states above. ``limit_concurrency`` of uvicorn's Config bounds the connections."""

    HEAD_SECONDS = 10.0
    HEAD_BYTES = 64 * 1024
    MAX_HEADERS = 256
    MAX_PIPELINED = 16  # complete or partial requests behind the one that is being answered
    FRAMING_BYTES = 8 * 1024  # of trailers, and of what is no content in a chunked body, beyond CHUNK_FRAMING_BYTES
    CHUNK_FRAMING_BYTES = 32  # for each chunk
    TINY_CHUNKS = 4096  # more chunks than this must have, on average, at least MIN_CHUNK_BYTES
    MIN_CHUNK_BYTES = 64
    LINGER_SECONDS = 2.0
    LINGER_BYTES = 256 * 1024
    UNREAD_SECONDS = 20.0
    UNREAD_BYTES = 10_000
    ALL_UNREAD_BYTES = 256 * 2**20  # of all connections together; over it, the one that waits longest is aborted
    SPARE_CONNECTIONS = 64  # over the limit of connections, to tell that it is reached

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unanswered: deque[_Cycle] = deque()  # the first is being answered, the others are pipelined
        self._in_head = True
        self._in_body = False  # of the request `self.cycle`
        self._stopped = False  # no more requests are read: input is discarded
        self._head_without_upgrade: bytes | None = None
        self._head_bytes = 0
        self._body_bytes = 0
        self._chunks = 0
        self._framing_bytes = 0
        self._trailer_bytes = 0
        self._unwanted_bytes = 0  # in REST and LINGER
        self._unsent_bytes = 0  # in UNREAD, at its last look
        self._timer: asyncio.TimerHandle | None = None
        self._timed_state: State | None = None
        self._since = 0.0  # loop time at which that state began

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self.limit_concurrency
        if limit is not None and len(self.connections) > limit and not self._close_idle_connection():
            if len(self.connections) > limit + self.SPARE_CONNECTIONS:
                _warn("a connection is closed: there are too many")
                transport.abort()
            else:
                self._refuse(
                    Unavailable("The service has as many connections as it can hold; try again.", retry_after=1)
                )
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        if self._stopped or self._state is State.REST:
            self._unwanted_bytes += len(data)
            if self._unwanted_bytes > self.LINGER_BYTES:
                self._stop_discarding()
                return
        if self._stopped:
            return
        if self._in_head:
            self._head_bytes += len(data)
        body_of = self.cycle if self._in_body else None
        framing = len(data) + self._body_bytes + self._chunks * self.CHUNK_FRAMING_BYTES
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            unreadable = "it is not HTTP/1.1, or its address is too long or malformed"
            self._refuse(_unreadable(str(cause) if isinstance(cause, _Unreadable) else unreadable))
            return
        if self._in_head and self._head_bytes > self.HEAD_BYTES:
            self._refuse(_unreadable(f"its first line and headers are over {self.HEAD_BYTES // 1024} KiB"))
        elif self._in_body and self.cycle is body_of:
            framing -= self._body_bytes + self._chunks * self.CHUNK_FRAMING_BYTES
            self._framing_bytes = max(0, self._framing_bytes + framing)
            if self._framing_bytes > self.FRAMING_BYTES:
                self._refuse(_unreadable("its chunks have long extensions or trailers"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)
        for cycle in self._unanswered:
            cycle.disconnect()
        self._unanswered.clear()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._update_timer()
        self._bound_all_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing() and not self._stopped:
            self._start_next()
            self.flow.resume_reading()
        self._update_timer()

    def shutdown(self) -> None:
        """Close the connection once the accepted requests are answered."""
        if self._unanswered:
            self._unanswered[-1].close_when_complete()
        elif not self._in_body:
            self._close()
        elif not self._stopped:
            self._end()

    # The parser's callbacks

    def on_message_begin(self) -> None:
        if len(self._unanswered) > self.MAX_PIPELINED:
            raise _Unreadable(f"over {self.MAX_PIPELINED} requests wait on this connection")
        super().on_message_begin()
        self._in_head = True
        self._update_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer, which nobody reads
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > self.FRAMING_BYTES:
                raise _Unreadable(f"its trailers are over {self.FRAMING_BYTES // 1024} KiB")
            return
        if len(self.headers) >= self.MAX_HEADERS:
            raise _Unreadable(f"it has over {self.MAX_HEADERS} headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        method = self.parser.get_method()
        if self.parser.should_upgrade():
            if method == b"CONNECT":
                raise _Unreadable("CONNECT is for proxies, and this is none")
            # The parser takes no body after this head, so the request is parsed again, without Upgrade (`_feed`).
            lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self._head_without_upgrade = b"%b %b HTTP/1.1\r\n%b\r\n" % (method, self.url, b"".join(lines))
            return
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path or b"/"
        self.scope["method"] = method.decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = self.root_path + urllib.parse.unquote(path.decode("ascii"))
        self.scope["raw_path"] = self.root_path.encode("ascii") + path
        self.scope["query_string"] = url.query or b""
        self.cycle = cycle = _Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        cycle.protocol = self
        self._in_head, self._in_body = False, True
        self._head_bytes = self._body_bytes = self._chunks = self._framing_bytes = self._trailer_bytes = 0
        self._unanswered.append(cycle)
        self._start_next()
        if not cycle.started:
            self.flow.pause_reading()
        self._update_timer()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self.TINY_CHUNKS and self._body_bytes < self._chunks * self.MIN_CHUNK_BYTES:
            raise _Unreadable("its body comes in very many, very small chunks")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if not self.cycle.disconnected:
            super().on_body(body)
            if len(self._unanswered) > 1 and sum(len(cycle.body) for cycle in self._unanswered) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self._head_without_upgrade is None:
            self._in_body = False
            super().on_message_complete()
            self._update_timer()

    # Responses

    def on_response_complete(self) -> None:
        """Go on after a response: with the next request that was pipelined, or with the end of the connection."""
        cycle = self._unanswered.popleft()
        cycle.body = bytearray()
        self.server_state.total_requests += 1
        self._unwanted_bytes = 0
        if self.transport.is_closing():
            return
        if cycle.closes:
            self._unanswered.clear()
            self._end()
            return
        self._start_next()
        if not self._unanswered or self._unanswered[0].started:
            self.flow.resume_reading()
        self._update_timer()

    def _start_next(self) -> None:
        """Start the next request, but not while the client does not read: it would hold what it reserves."""
        if self._unanswered and not self._unanswered[0].started and not self.flow.write_paused:
            self._unanswered[0].started = True
            self._start_asgi_task(self._unanswered[0], self.app)

    def received_body_bytes(self, cycle: _Cycle) -> int:
        """Return the bytes that have arrived of the body of ``cycle``, a request whose body is incomplete."""
        return self._body_bytes if cycle is self.cycle else 0

    def fail(self, cycle: _Cycle, error: ServiceError) -> None:
        """Report ``error`` in place of the app's response, and close the connection."""
        if cycle.disconnected or cycle.response_complete:
            return
        if cycle.response_started or self.flow.write_paused:
            self.transport.abort()
            return
        cycle.disconnect()
        self._unanswered.clear()
        self._write_problem(error, Headers(raw=list(cycle.scope["headers"])))
        self._end()

    def _feed(self, data: bytes) -> None:
        """Parse ``data``, and requests to upgrade as requests like any other (RFC 9110, section 7.8, allows it)."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                head, self._head_without_upgrade = self._head_without_upgrade, None
                assert head is not None
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(head)
                data = data[upgrade.args[0] :]

    def _refuse(self, error: ServiceError) -> None:
        """Read nothing more. ``error`` is reported unless complete requests before it are still being answered."""
        headers = Headers({"X-Request-ID": uuid.uuid4().hex})
        _warn(f"a request is refused: {error.detail}", request_id=headers["X-Request-ID"])
        self._stopped = True
        broken = cast("_Cycle | None", self.cycle) if self._in_body else None  # the bytes were to be its body
        if broken is not None and broken in self._unanswered:
            self._unanswered.remove(broken)
            broken.disconnect()
        if self._unanswered:
            self._unanswered[-1].close_when_complete()
            self._update_timer()
        elif broken is not None and broken.response_started:
            self._end() if broken.response_complete else self._close()
        else:
            self._write_problem(error, headers)
            self._end()

    def _write_problem(self, error: ServiceError, headers: Headers) -> None:
        request_id = request_id_for(headers)
        response = problem_response(error, request_id)
        response.headers.update({"Connection": "close", "X-Request-ID": request_id})
        head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        self.transport.write(STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body))

    # The end of the connection

    def _end(self) -> None:
        """Close the connection after what is written; where the client may be sending, so that it can still read.

        Closing a socket that has unread bytes discards the response that was sent, so they are read, for a while.
        """
        if not (self._stopped or self._in_head or self._in_body or self.flow.read_paused):
            self._close()
            return
        self._stopped, self._unwanted_bytes = True, 0
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # not with TLS
            with contextlib.suppress(OSError):
                self.transport.write_eof()
        self._update_timer()

    def _stop_discarding(self) -> None:
        if self._unanswered:
            self.flow.pause_reading()
        else:
            self._close()

    def _close(self) -> None:
        self.transport.close()
        self._update_timer()

    def _close_idle_connection(self) -> bool:
        """Close the connection that has been idle for longest; return whether there was one."""
        idle = [other for other in self._others() if other._timed_state is State.IDLE]
        if not idle:
            return False
        min(idle, key=lambda other: other._since).transport.abort()
        return True

    def _bound_all_unread(self) -> None:
        unread = sorted((other for other in self._others() if other.flow.write_paused), key=lambda other: other._since)
        total = sum(other.transport.get_write_buffer_size() for other in (*unread, self))
        for other in unread:
            if total <= self.ALL_UNREAD_BYTES:
                return
            total -= other.transport.get_write_buffer_size()
            _warn("a connection is closed: clients do not read their responses, which fill the memory for them")
            other.transport.abort()

    def _others(self) -> list[LimitedHttpProtocol]:
        others = cast("set[LimitedHttpProtocol]", self.connections)
        return [other for other in others if other is not self and not other.transport.is_closing()]

    # The timer

    @property
    def _state(self) -> State:
        if self.transport.is_closing() or self.flow.write_paused:
            return State.UNREAD
        if self._stopped:
            return State.ANSWER if self._unanswered else State.LINGER
        if self._in_head:
            return State.HEAD
        if self._in_body:
            return State.REST if self.cycle.response_complete else State.BODY
        return State.ANSWER if self._unanswered else State.IDLE

    def _update_timer(self) -> None:
        """Start the timer of the state that the connection is in, unless it runs already."""
        state = self._state
        if state is self._timed_state:
            return
        self._cancel_timer()
        self._timed_state, self._since = state, self.loop.time()
        if state is State.UNREAD:
            self._unsent_bytes = self._count_unsent()
        self._start_timer()

    def _start_timer(self) -> None:
        seconds = {
            State.HEAD: self.HEAD_SECONDS,
            State.REST: self.LINGER_SECONDS,
            State.IDLE: self.timeout_keep_alive,
            State.LINGER: self.LINGER_SECONDS,
            State.UNREAD: self.UNREAD_SECONDS,
        }.get(self._timed_state)  # type: ignore[arg-type]
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._on_timer)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count_unsent(self) -> int:
        """Return the bytes that the client has not taken yet.

        Those in the kernel count: it takes megabytes from the transport at once, and gives them to the client slowly.
        """
        unsent = self.transport.get_write_buffer_size()
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no socket
            number = self.transport.get_extra_info("socket").fileno()
            unsent += int.from_bytes(fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return unsent

    def _on_timer(self) -> None:
        if self._timed_state is State.UNREAD:
            unsent = self._count_unsent()
            if self._unsent_bytes - unsent < self.UNREAD_BYTES:
                _warn("a connection is closed: the client does not read")
                self.transport.abort()
            else:
                self._unsent_bytes = unsent
                self._start_timer()
        elif self._timed_state is State.HEAD:
            _warn("a connection is closed: the request's head is too slow")
            if self._unanswered:  # complete requests before it
                self._stopped = True
                self._unanswered[-1].close_when_complete()
                self._update_timer()
            else:
                self._close()
        else:
            self._close()


class _Cycle(RequestResponseCycle):
    """One request and its response. What the app leaves undone is answered as a problem, never in plain text.

    started: whether the app has been called. closes: the connection ends after this response; the protocol ends it
    then, so that a client that is still sending can read the response.
    """

    protocol: LimitedHttpProtocol
    body: bytearray
    closes = False
    started = False

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Call the app."""
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                raise RuntimeError("the app ended without a complete response")
        except asyncio.CancelledError:  # the server ends, and the time for the last responses is over
            error: ServiceError = Unavailable("The service is shutting down; send the request again.", retry_after=5)
            self.protocol.fail(self, error)
        except Exception:
            log.exception("a request has failed outside the app's own handling of errors")
            error = ServiceError("Something went wrong inside the service; try again, and report it if it goes on.")
            self.protocol.fail(self, error)
        finally:
            self.on_response = lambda: None

    async def send(self, message: ASGISendEvent) -> None:
        """Write a part of the response."""
        if message["type"] == "http.response.start" and self.more_body and not self._rest_is_short():
            self.keep_alive = False  # the client is told: it must not send another request behind such a body
        if message["type"] == "http.response.body" and not self.keep_alive:
            # The head with `Connection: close` is written. uvicorn would close the connection itself.
            self.keep_alive, self.closes = True, True
        await super().send(message)

    def _rest_is_short(self) -> bool:
        """Return whether what is left of the body is announced, and may be discarded."""
        length = dict(self.scope["headers"]).get(b"content-length", b"")
        limit = self.protocol.LINGER_BYTES
        return length.isdigit() and int(length) - self.protocol.received_body_bytes(self) <= limit

    def close_when_complete(self) -> None:
        """Make the connection end after this response."""
        if self.response_started:
            self.closes = True
        else:
            self.keep_alive = False

    def disconnect(self) -> None:
        """Let the app see that its client is gone; what it still sends is dropped."""
        self.disconnected = True
        self.waiting_for_100_continue = False
        self.body = bytearray()
        self.message_event.set()


class _Unreadable(Exception):
    """The request cannot be read; the text says why, for a sentence."""


def _unreadable(reason: str) -> BadRequest:
    return BadRequest(f"The request cannot be read: {reason}. Send HTTP/1.1, and what is long in the body.")


class _RepeatedWarning:
    """Log a warning at most once a second, with how often it came meanwhile: a flood must not fill the log."""

    SECONDS = 1.0

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def __call__(self, message: str, **fields: str) -> None:
        now = time.monotonic()
        if now - self._last.get(message, -self.SECONDS) < self.SECONDS:
            self._left_out[message] = self._left_out.get(message, 0) + 1
            return
        self._last[message] = now
        log.warning("%s", message, extra={"left_out": self._left_out.pop(message, 0), **fields})


_warn = _RepeatedWarning()
