"""Decide from its head alone whether a POST request is read, and how soon an error is sent.

``RequestContextMiddleware`` calls ``Admission`` before the request is routed. What an accepted request reserves is
released when the last byte of its response is written. To refuse a request costs little, since neither its route nor
its body is needed. But a client that ignores Retry-After takes each refusal as a reason to send the next request at
once, and reading and refusing that many takes the processor from the detector. So errors are sent at a bounded rate: a
burst at once, and what is above the rate later. A client that waits for its error sends nothing meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope

from service.api.auth import KeyRing
from service.api.context import ProblemMembers, RequestContext
from service.api.numbers import whole_number
from service.api.options import MAX_TIMEOUT_MS
from service.errors import ClientGone
from service.inference.batcher import Batcher
from service.inference.limits import ArrivingBodies
from service.settings import Settings

log = logging.getLogger("frcnn.access")

_DISCARDED_BYTES = 256 * 1024  # of the body of a request whose error waits; what follows is left in the connection


class Pacer:
    """Let a burst pass at once, and what is above the rate later, in the order of arrival.

    Those that have waited pass in groups, one each ``TICK`` seconds. An error in a group costs less than half of the
    processor time that it costs alone, and the detector's threads are interrupted less often.
    """

    RATE = 50.0  # a second
    BURST = 50
    TICK = 0.5

    def __init__(self) -> None:
        self._tokens = float(self.BURST)
        self._updated = time.monotonic()
        self._waiting: dict[asyncio.Future[None], float] = {}  # in order, each with its last moment
        self._timer: asyncio.TimerHandle | None = None

    def pass_at_once(self) -> bool:
        """Return whether the caller passes now; if not, it waits for its ``turn``."""
        self._refill()
        if self._waiting or self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def turn(self, deadline: float) -> asyncio.Future[None]:
        """Return a future that is done when the caller may pass; cancel it to give the turn up.

        deadline: ``time.monotonic`` seconds; the turn comes with the last group before it at the latest.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = deadline
        future.add_done_callback(lambda _: self._waiting.pop(future, None))
        self._start_timer()
        return future

    def let_all_pass(self) -> None:
        """End all waiting."""
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)

    def _refill(self) -> None:
        now = time.monotonic()
        self._tokens = min(float(self.BURST), self._tokens + (now - self._updated) * self.RATE)
        self._updated = now

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.TICK, self._let_pass)

    def _let_pass(self) -> None:
        self._timer = None
        self._refill()
        next_tick = self._updated + self.TICK
        for future, deadline in list(self._waiting.items()):
            if self._tokens >= 1 or deadline <= next_tick:
                del self._waiting[future]
                if not future.done():  # as one is for a moment whose client has just left
                    future.set_result(None)
                    self._tokens = max(0.0, self._tokens - 1)
        if self._waiting:
            self._start_timer()


class Admission:
    """The checks of a POST request before its body is read, and the pace of errors. There is one for each app."""

    MAX_DELAY = 20.0  # seconds that an error waits
    MAX_DELAY_CLOSING = 1.0  # the same while the service ends

    def __init__(self, settings: Settings, batcher: Batcher, keys: KeyRing | None, routes: Iterable[BaseRoute]) -> None:
        """Check requests for the POST routes among ``routes``. keys: None where no key is asked for."""
        self._timeout_ms = settings.timeout_ms
        self._batcher = batcher
        self._keys = keys
        self._routes = [route for route in routes if isinstance(route, APIRoute) and "POST" in (route.methods or ())]
        # A body takes a while to arrive, and holds no slot of the queue meanwhile: so more of them than slots.
        self._arriving_bodies = ArrivingBodies(max(64, 4 * settings.max_queue), lambda: batcher.retry_after)
        # Each kind on its own: a flood without keys does not delay what clients with a key are told.
        self._unauthorized, self._busy, self._admitted, self._others = Pacer(), Pacer(), Pacer(), Pacer()
        self._delayed: Counter[str] = Counter()
        batcher.on_closing = self._let_all_pass

    def admit(self, scope: Scope, context: RequestContext) -> None:
        """Reserve what a POST request needs, on ``context.exit_stack``. Raises a ``ServiceError`` to refuse it.

        In this order: the API key, the limit of its requests, the drain, the queue. An address that has no POST route
        is left to the routing.
        """
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        route = next((route for route in self._routes if route.path_regex.match(path)), None)
        if route is None:
            return
        context.route = route.path
        for dependency in route.dependencies:
            if isinstance(dependency.dependency, ProblemMembers):
                context.problem_members = dependency.dependency.members
        headers, reserve = Headers(scope=scope), context.exit_stack.enter_context
        context.deadline = context.arrived + self._timeout_seconds(headers)
        if self._keys is not None:
            reserve(self._keys.limit_concurrency(self._keys.check(headers)))
        self._batcher.check_open(context.deadline)
        reserve(self._batcher.track_request())
        context.arriving_body = reserve(self._arriving_bodies.track())

    async def pace(self, status: int, scope: Scope, context: RequestContext, receive: Receive) -> None:
        """Wait until a response of ``status`` may be sent; only those of errors ever wait.

        The wait ends at the request's deadline, or after ``MAX_DELAY``. What arrives of the body meanwhile is
        discarded. Raises ``ClientGone`` where the client disconnects.
        """
        pacer = self._pacer(status, scope["method"], context.arriving_body is not None)
        if pacer is None or pacer.pass_at_once():
            return
        context.exit_stack.close()  # nothing that is reserved is needed for the error
        context.delayed = True
        self._count_delayed(context.problem_code or str(status))
        delay = self.MAX_DELAY_CLOSING if self._batcher.closing else self.MAX_DELAY
        now = time.monotonic()
        deadline = min(now + delay, context.deadline)
        turn = pacer.turn(deadline)
        body = asyncio.ensure_future(_discard_body(scope, receive))
        try:
            timeout = max(0.0, deadline - now)
            await asyncio.wait({turn, body}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if body.done():
                raise ClientGone("The client closed the connection before its response.")
        finally:
            turn.cancel()
            body.cancel()
            await asyncio.gather(body, return_exceptions=True)

    def _timeout_seconds(self, headers: Headers) -> float:
        """Return the seconds that the client allows. What is wrong in the header is reported once it is routed."""
        milliseconds = whole_number(headers.get("x-request-timeout-ms", ""), MAX_TIMEOUT_MS + 1)
        if milliseconds is None or not 1 <= milliseconds <= MAX_TIMEOUT_MS:
            milliseconds = self._timeout_ms
        return milliseconds / 1000

    def _pacer(self, status: int, method: str, admitted: bool) -> Pacer | None:
        if status == 401:
            return self._unauthorized
        if status in (429, 503):
            return self._busy if method == "POST" else None  # a probe of /readyz never waits
        if not 400 <= status < 500 or status == ClientGone.status:
            return None
        return self._admitted if admitted else self._others

    def _let_all_pass(self) -> None:
        for pacer in (self._unauthorized, self._busy, self._admitted, self._others):
            pacer.let_all_pass()

    def _count_delayed(self, reason: str) -> None:
        """Count an error that has no line of its own in the log."""
        if not self._delayed:
            asyncio.get_running_loop().call_later(1.0, self._log_delayed)
        self._delayed[reason] += 1

    def _log_delayed(self) -> None:
        log.info("errors are delayed", extra={"delayed": dict(self._delayed), "rate": Pacer.RATE})
        self._delayed.clear()


async def _discard_body(scope: Scope, receive: Receive) -> None:
    """Read and drop the body, and return when the client disconnects."""
    size = 0
    # Reading would tell a client that expects 100 Continue to send its body.
    while size <= _DISCARDED_BYTES and "expect" not in Headers(scope=scope):
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
    await asyncio.Event().wait()
