"""The HTTP interfaces of other services: each translates to ``ImageHandler``, and is off unless its setting is on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request

from service.api.context import request_context


def add_problem_members(members: Callable[[str], dict[str, Any]]) -> Callable[[Request], None]:
    """Return a dependency that adds members to the problem documents of a router's routes, as its clients expect.

    members: returns them for the error's message.
    """

    def dependency(request: Request) -> None:
        request_context(request).problem_members = members

    return dependency


def integer_box(box: Sequence[float], names: Sequence[str]) -> dict[str, int]:
    """Return ``box``, xyxy in pixels, in whole pixels by ``names``."""
    return {name: round(value) for name, value in zip(names, box, strict=True)}
