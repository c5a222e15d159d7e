"""What stands around Ray Serve's proxy: a deadline and a bound on bodies going in, our problem documents coming out.

Without it a request whose replica dies gets a 500 without a word of trying again, and other refusals are plain text.
Ray's proxies call ``proxy_middlewares`` where ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` names it in the environment
that Ray was started in. Nothing here may import torch: a proxy that takes its time to start is taken for dead.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.request_id import request_id_for
from service.errors import DeadlinePassed, QueueFull, ServiceError, Unavailable, problem_response
from service.inference.limits import Budget
from service.settings import PREFIX, Settings, load_settings

_PROXY_BYTES = 2 * 2**30  # bodies that one proxy holds at once, for all replicas together
_MARGIN = 2.0  # seconds by which Ray waits longer than a replica, so that the replica's own answer is the one heard


def environment(settings: Settings) -> dict[str, str]:
    """The variables with which Ray's proxies stand behind ``Front``, and it knows what it must of ``settings``."""
    known = {f"{PREFIX}{name.upper()}": str(getattr(settings, name)) for name in ("max_body_bytes", "timeout_ms")}
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}:proxy_middlewares",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",  # on a busy machine a proxy that takes its time is not dead
        **known,
    }


def proxy_middlewares() -> list[Middleware]:
    """What Ray's proxies put before everything; its settings come from their environment."""
    return [Middleware(Front, settings=load_settings(), most_bytes=_PROXY_BYTES)]


class Front:
    """Wraps the proxy. most_bytes: of all bodies that are here at once."""

    def __init__(self, app: ASGIApp, settings: Settings, most_bytes: int) -> None:
        self._app = app
        self._settings = settings
        self._bodies = Budget(most_bytes, lambda: 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entrance."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        headers["X-Request-ID"] = request_id = request_id_for(headers)
        headers["X-Request-Timeout-Seconds"] = str(self._patience(headers))
        del headers["X-Request-Disconnect-Disabled"]  # Ray's own, and not a stranger's to set
        begun = False
        refusal: ServiceError | None = None
        most = 2 * self._settings.max_body_bytes  # of this body: beyond it a replica does not read on either
        size = 0

        async def receive_bounded() -> Message:
            nonlocal size, refusal
            if size > most:
                await asyncio.Event().wait()  # cancelled when the answer is out
            message = await receive()
            body = message.get("body", b"")
            size += len(body)
            try:
                take(len(body))
            except QueueFull as full:
                refusal = full
                return {"type": "http.disconnect"}  # so that Ray takes the request back from the replica
            return message

        async def send_ours(message: Message) -> None:
            nonlocal begun, refusal
            if message["type"] == "http.response.start":
                said = MutableHeaders(scope=message)
                if message["status"] >= 400 and "X-Content-Type-Options" not in said:  # the app sets it on all
                    refusal = _translated(message["status"], said)
                else:
                    begun = True
                said["X-Request-ID"] = request_id  # once: the app has set it, and then Ray
            if begun:
                await send(message)

        with self._bodies.reserve() as take:
            await self._app(scope, receive_bounded, send_ours)
        if not begun:
            gone = Unavailable("What was to answer this request has ended; send it again.", retry_after=1)
            answer = problem_response(refusal or gone, request_id)
            answer.headers.update({"X-Request-ID": request_id, "Cache-Control": "no-store"})
            await answer(scope, receive, send)

    def _patience(self, headers: Headers) -> float:
        """Seconds that Ray waits for an answer."""
        asked = headers.get("x-request-timeout-ms", "")
        return (int(asked) if asked.isdecimal() else self._settings.timeout_ms) / 1000 + _MARGIN


def _translated(status: int, headers: Headers) -> ServiceError:
    """Ray's own refusal as one of ours."""
    wait = headers.get("retry-after", "")
    seconds = int(wait) if wait.isdecimal() else 1
    if status == 408:
        return DeadlinePassed("The deadline passed before a replica had an answer; allow more time, or add replicas.")
    if status == 429:
        return QueueFull(
            "All replicas have as much to do as they may; try again after the time in Retry-After.", retry_after=seconds
        )
    if status == 404:
        return Unavailable(
            "No replica serves yet, or no longer; try again after the time in Retry-After.", retry_after=5
        )
    return Unavailable(
        "No replica can take this request now; try again after the time in Retry-After.", retry_after=seconds
    )
