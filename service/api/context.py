"""The context of a request: one typed object in the ASGI scope, from its first byte to its last."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from service.inference.limits import ArrivingBody

_KEY = "frcnn.request_context"


@dataclass
class RequestContext:
    """The state of one request outside its handler. ``RequestContextMiddleware`` makes one for each.

    arrived, deadline: ``time.monotonic`` seconds. route: the pattern of its POST route; None for other methods and
    where there is none. exit_stack: holds what the request has reserved, and is closed when its response is written.
    arriving_body: of an admitted request. log_fields: fields that a handler adds to the request's line in the log.
    delayed: whether its error had to wait. problem_code: the ``code`` of the error that the response reports, for the
    log and the metrics. problem_members: those of its route, see ``ProblemMembers``.
    """

    request_id: str
    arrived: float
    deadline: float = math.inf
    route: str | None = None
    exit_stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    arriving_body: ArrivingBody | None = None
    log_fields: dict[str, Any] = field(default_factory=dict)
    delayed: bool = False
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


class ProblemMembers:
    """A dependency of routes that answer as another service does: its clients expect further members in a problem.

    members: returns them for the error's message.
    """

    def __init__(self, members: Callable[[str], dict[str, Any]]) -> None:
        self.members = members

    def __call__(self, request: Request) -> None:
        request_context(request).problem_members = self.members
