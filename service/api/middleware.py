"""What happens around every request: an id, security headers, one line in the log, the counters.

Pure ASGI. It also turns an exception that nobody expected into a problem, so that even that answer carries the id and
the headers, and nothing of what went wrong inside is told to a stranger.
"""

from __future__ import annotations

import contextlib
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.request_id import request_id_for
from service.errors import ClientGone, ServiceError, problem_response
from service.metrics import Metrics

log = logging.getLogger("frcnn.access")

_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'",
}
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds: in the log at debug only


class Envelope:
    """Wraps the app; leaves ``request_id``, ``arrived`` (monotonic seconds) and ``notes`` for the log in the scope.

    ``held`` there is an exit stack: what a request holds until its answer is out, and then gives back.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entrance."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["request_id"] = request_id = request_id_for(Headers(scope=scope))
        scope["arrived"] = arrived = time.monotonic()
        scope["notes"] = {}
        scope["held"] = held = contextlib.ExitStack()
        status = 0

        async def send_wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        self._metrics.inflight.inc()
        try:
            await self._app(scope, receive, send_wrapped)
        except Exception:
            log.exception("unexpected failure", extra={"request_id": request_id})
            if status:
                raise  # half an answer is out: let the server cut the connection
            error = ServiceError(
                "Something went wrong inside the service; try again, and report the request id if it goes on."
            )
            await problem_response(error, request_id)(scope, receive, send_wrapped)
        finally:
            held.close()
            self._metrics.inflight.dec()
            self._record(scope, status or ClientGone.status, time.monotonic() - arrived)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern, never the path: a stranger must not choose how many time series there are.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if status >= 400:
            self._metrics.rejected.labels(scope["notes"].get("problem", "internal_error")).inc()
        log.log(
            logging.DEBUG if route in _QUIET else logging.INFO,
            "request",
            extra={
                "request_id": scope["request_id"],
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 1),
                **scope["notes"],
            },
        )
