"""The FastAPI dependencies of the routes: the handler, the API key, the deadline header."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request

from service.api.handler import ImageHandler
from service.api.options import MAX_TIMEOUT_MS


def _handler(request: Request) -> ImageHandler:
    handler = request.app.state.handler
    assert isinstance(handler, ImageHandler)
    return handler


Handler = Annotated[ImageHandler, Depends(_handler)]


def _check_key(request: Request, handler: Handler) -> None:
    if handler.keys is not None:
        handler.keys.check(request.headers)


RequireKey = Depends(_check_key)
TimeoutMs = Annotated[
    int | None,
    Header(
        alias="X-Request-Timeout-Ms",
        ge=1,
        le=MAX_TIMEOUT_MS,
        description="milliseconds after which the client no longer needs the response",
    ),
]
