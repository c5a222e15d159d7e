"""Other services' HTTP interfaces over the same queue: each a thin translation, off unless its setting is on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Request

from service.inference.pipeline import Pipeline, Visit

Members = Callable[[str], dict[str, Any]]


async def receive_raw(pipeline: Pipeline, request: Request) -> Visit:
    """As ``pipeline.receive``, but the body comes as it is, as the visit's one picture, for the dialect to open."""
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    return await pipeline.receive(Request({**request.scope, "headers": headers}, request.receive), None)


def speaking(members: Members) -> Callable[[Request], None]:
    """A dependency: problems of the router's routes also have the members that the dialect's clients look for."""

    def speak(request: Request) -> None:
        request.scope["dialect"] = members

    return speak
