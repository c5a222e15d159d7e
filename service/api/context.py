"""The context of a request: one typed object in the ASGI scope, from its first byte to its last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

_KEY = "frcnn.request_context"


@dataclass
class RequestContext:
    """The state of one request outside its handler. ``RequestContextMiddleware`` makes one for each.

    arrived: ``time.monotonic`` seconds. exit_stack: holds what the request has reserved, and is closed when its
    response is sent. log_fields: fields that a handler adds to the request's line in the log. problem_code: the
    ``code`` of the error that the response reports, for the log and the metrics. problem_members: returns, for an
    error's message, members that the clients of another service expect in a problem; the routes in ``compat`` set it.
    """

    request_id: str
    arrived: float
    exit_stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    log_fields: dict[str, Any] = field(default_factory=dict)
    problem_code: str | None = None
    problem_members: Callable[[str], dict[str, Any]] | None = None


def set_request_context(scope: Scope, context: RequestContext) -> None:
    """Put ``context`` into the scope of its request."""
    scope[_KEY] = context


def request_context(request: HTTPConnection) -> RequestContext:
    """Return the context of ``request``."""
    context = request.scope[_KEY]
    assert isinstance(context, RequestContext)
    return context
