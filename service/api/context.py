"""What is known of a request from its first byte to its last: one typed object in the ASGI scope."""

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
    """Made by ``RequestContextMiddleware`` for each request.

    arrived: ``time.monotonic`` seconds. exit_stack: holds what the request has reserved, and is closed when its
    response is out. log_fields: what a handler adds to the request's line in the log. problem_code: the ``code`` of
    the error that the response tells of, for the log and the metrics. problem_members: makes of an error's message
    the members that another service's clients look for; set by the routes in ``compat``.
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
