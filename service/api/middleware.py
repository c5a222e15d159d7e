"""The middleware around every request: an id, admission, security headers, one line in the log, the metrics.

Pure ASGI. It also turns an unexpected exception into a problem, so that even that response carries the id and the
headers, and does not tell the client what went wrong inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.admission import Admission
from service.api.context import RequestContext, set_request_context
from service.api.options import check_query
from service.api.problems import problem_response
from service.api.request_id import request_id_for
from service.errors import ClientGone, ServiceError, Unavailable
from service.metrics import Metrics

log = logging.getLogger("frcnn.access")

_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'self'",
}
_ENDED = Unavailable("The service has ended before there was a result; send it to another instance.", retry_after=5)
_GONE = ClientGone("The client closed the connection before its response.")
_QUIET = frozenset({"/livez", "/readyz", "/metrics"})  # requested every few seconds: logged at debug only


class RequestContextMiddleware:
    """Wrap the app: put a ``RequestContext`` into the scope of each request, and close it at the end."""

    def __init__(self, app: ASGIApp, metrics: Metrics, admission: Admission) -> None:
        self._app = app
        self._metrics = metrics
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(request_id_for(Headers(scope=scope)), time.monotonic())
        set_request_context(scope, context)
        status = 0

        async def send_paced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                try:
                    await self._admission.pace(message["status"], scope, context, receive)
                except ClientGone as gone:  # the server drops what is sent now
                    status, context.problem_code = gone.status, gone.code
            await send_with_headers(message)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = status or message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = context.request_id
                for name, value in _SECURITY.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        self._metrics.inflight.inc()
        try:
            await self._admitted_app(scope, context)(scope, receive, send_paced)
        except asyncio.CancelledError:
            # At its end the server cancels the requests that are left, and Ray those whose client has left.
            if not status:
                error: ServiceError = _GONE if await _has_left(receive) else _ENDED
                context.problem_code = error.code
                await problem_response(error, context.request_id)(scope, receive, send_with_headers)
            raise
        except Exception:
            log.exception("unexpected failure", extra={"request_id": context.request_id})
            if status:
                raise  # part of the response is sent: the server must close the connection
            error = ServiceError(
                "Something went wrong inside the service; try again, and report the request id if it goes on."
            )
            await problem_response(error, context.request_id)(scope, receive, send_with_headers)
        finally:
            context.exit_stack.close()
            self._metrics.inflight.dec()
            self._record(scope, context, status or ServiceError.status)

    def _admitted_app(self, scope: Scope, context: RequestContext) -> ASGIApp:
        """Return the app, or for a request that is refused the response that says why."""
        # No route reads cookies, but FastAPI parses them, in time that grows with their square in Python before 3.12.6.
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"cookie"]
        try:
            if scope["method"] == "POST":
                self._admission.admit(scope, context)
            check_query(scope["query_string"])
        except ServiceError as error:
            context.exit_stack.close()
            context.problem_code = error.code
            return problem_response(error, context.request_id, context.problem_members)
        return self._app

    def _record(self, scope: Scope, context: RequestContext, status: int) -> None:
        seconds = time.monotonic() - context.arrived
        # The route's pattern, never the path: a client must not choose how many time series there are.
        route = context.route or getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if status >= 400:
            self._metrics.rejected.labels(context.problem_code or ServiceError.code).inc()
        if context.delayed:  # such errors are logged together (admission.py)
            return
        log.log(
            logging.DEBUG if route in _QUIET else logging.INFO,
            "request",
            extra={
                "request_id": context.request_id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 1),
                **({"problem": context.problem_code} if context.problem_code else {}),
                **context.log_fields,
            },
        )


async def _has_left(receive: Receive) -> bool:
    """Return whether the client has disconnected, without waiting for it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            while (await receive())["type"] != "http.disconnect":
                pass
            return True
    return False
