"""Middleware for Ray Serve's HTTP proxy: deadlines and limits on request bodies, and problem documents for errors.

Without it, a request whose replica dies gets a 500 that does not say to retry, and Ray's other errors are plain text.
Ray's proxies call ``proxy_middlewares`` where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it in the environment
that Ray was started in. Nothing here may import torch: Ray restarts a proxy that starts slowly.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.numbers import whole_number
from service.api.problems import problem_response
from service.api.request_id import request_id_for
from service.errors import BadRequest, DeadlinePassed, QueueFull, ServiceError, Unavailable
from service.inference.limits import Budget
from service.settings import PREFIX, Settings, load_settings

_PROXY_BYTES = 2 * 2**30  # of all request bodies in one proxy at once, for all replicas together
_HEAD_BYTES = 64 * 1024  # of an address and headers: Ray's server has no bound, and the replica's is the same
_MAX_TIMEOUT_MS = 3_600_000  # what a replica accepts
_MARGIN_SECONDS = 2.0  # Ray waits this much longer than a replica, so that the client gets the replica's own response


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that make Ray's proxies use this middleware, and pass it the ``settings`` it needs."""
    passed_on = {f"{PREFIX}{name.upper()}": str(getattr(settings, name)) for name in ("max_body_bytes", "timeout_ms")}
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:proxy_middlewares",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # a busy machine starts a proxy slowly
        **passed_on,
    }


def proxy_middlewares() -> list[Middleware]:
    """Return the middleware that Ray's proxies put around themselves, with the settings of their environment."""
    return [Middleware(RayProxyMiddleware, settings=load_settings(), max_bytes=_PROXY_BYTES)]


class RayProxyMiddleware:
    """ASGI middleware around Ray's proxy. max_bytes: of all request bodies in it at once."""

    def __init__(self, app: ASGIApp, settings: Settings, max_bytes: int) -> None:
        self._app = app
        self._settings = settings
        self._bodies = Budget(max_bytes, lambda: 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to Ray, and its response back, with Ray's own errors replaced by problem documents."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        head_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if head_bytes + len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _HEAD_BYTES:
            detail = f"The address and headers are over {_HEAD_BYTES // 1024} KiB; send what is long in the body."
            await self._respond(BadRequest(detail), request_id_for(headers), scope, receive, send)
            return
        headers["X-Request-ID"] = request_id = request_id_for(headers)
        headers["X-Request-Timeout-Seconds"] = str(self._timeout(headers))
        del headers["X-Request-Disconnect-Disabled"]  # Ray's own header, which no client may set
        response_started = False
        error: ServiceError | None = None
        max_body_bytes = 2 * self._settings.max_body_bytes  # a replica reads no further than its own limit
        body_bytes = 0

        async def receive_limited() -> Message:
            nonlocal body_bytes, error
            if body_bytes > max_body_bytes:
                await asyncio.Event().wait()  # cancelled once the response is sent
            message = await receive()
            body = message.get("body", b"")
            body_bytes += len(body)
            try:
                take(len(body))
            except QueueFull as queue_full:
                error = queue_full
                return {"type": "http.disconnect"}  # so that Ray cancels the request in the replica
            return message

        async def send_app_response(message: Message) -> None:
            nonlocal response_started, error
            if message["type"] == "http.response.start":
                response_headers = MutableHeaders(scope=message)
                # The app sets this header on all its responses, so an error without it is Ray's own.
                if message["status"] >= 400 and "X-Content-Type-Options" not in response_headers:
                    error = _service_error(message["status"], response_headers)
                else:
                    response_started = True
                response_headers["X-Request-ID"] = request_id  # replaces Ray's own, which would be a second one
            if response_started:
                await send(message)

        with self._bodies.reserve() as take:
            await self._app(scope, receive_limited, send_app_response)
        if not response_started:
            replica_ended = Unavailable(
                "The replica that handled this request has ended; send it again.", retry_after=1
            )
            await self._respond(error or replica_ended, request_id, scope, receive, send)

    @staticmethod
    async def _respond(error: ServiceError, request_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        response = problem_response(error, request_id)
        response.headers.update({"X-Request-ID": request_id, "Cache-Control": "no-store"})
        await response(scope, receive, send)

    def _timeout(self, headers: Headers) -> float:
        """Return the seconds that Ray waits for a replica's response."""
        timeout_ms = whole_number(headers.get("x-request-timeout-ms", ""), _MAX_TIMEOUT_MS)
        return (self._settings.timeout_ms if timeout_ms is None else timeout_ms) / 1000 + _MARGIN_SECONDS


def _service_error(status: int, headers: Headers) -> ServiceError:
    """Return the error of this service that corresponds to an error response of Ray's own."""
    seconds = whole_number(headers.get("retry-after", ""), 3600) or 1
    if status == 408:
        return DeadlinePassed("The deadline passed before a replica had a response; allow more time, or add replicas.")
    if status == 429:
        return QueueFull("All replicas are fully loaded; try again after the time in Retry-After.", retry_after=seconds)
    if status == 404:
        return Unavailable(
            "No replica serves yet, or no longer; try again after the time in Retry-After.", retry_after=5
        )
    return Unavailable(
        "No replica can take this request now; try again after the time in Retry-After.", retry_after=seconds
    )
