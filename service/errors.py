"""What can go wrong, each with its HTTP status, and how it reads: ``application/problem+json`` (RFC 9457).

    ServiceError
      BadImage 400          BadRequest 400        Unauthorized 401      SlowBody 408          TooLarge 413
      UnsupportedImage 415  BadOption 422         ClientGone 499        PictureFailed 500
      OutOfMemory 500       NotFinite 500
      Busy (has a Retry-After): QueueFull 429, KeyBusy 429, Unavailable 503
      DeadlinePassed 504

Every sentence says what to do about it. What is sent never holds a traceback, a path or a picture's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
from starlette.responses import Response

PROBLEM_JSON = "application/problem+json"


class ServiceError(Exception):
    """A failure with a status and a word (``code``) for machines; its text is for people."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str, *, fields: Sequence[dict[str, str]] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = tuple(fields)

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this failure."""
        return {}


class BadImage(ServiceError):
    """The bytes claim to be a picture and cannot be decoded."""

    status, code = 400, "bad_image"


class BadRequest(ServiceError):
    """The request, or its body's envelope (JSON, multipart), is broken, or holds no picture."""

    status, code = 400, "bad_request"


class Unauthorized(ServiceError):
    """No API key, or a wrong one."""

    status, code = 401, "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="frcnn"'}


class SlowBody(ServiceError):
    """The body took longer to arrive than is allowed."""

    status, code = 408, "slow_body"

    @property
    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}


class TooLarge(ServiceError):
    """Over the limit of bytes or pixels."""

    status, code = 413, "too_large"

    @property
    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}  # what is left of the body is not wanted either


class UnsupportedImage(ServiceError):
    """Not one of the supported formats, judged by content."""

    status, code = 415, "unsupported_image"


class BadOption(ServiceError):
    """An option is unknown or out of range; ``fields`` names each."""

    status, code = 422, "bad_option"


class ClientGone(ServiceError):
    """The client hung up before its answer; nobody reads this one, but the logs and counters do."""

    status, code = 499, "client_gone"


class PictureFailed(ServiceError):
    """The detector failed on this picture, alone."""

    status, code = 500, "picture_failed"


class OutOfMemory(ServiceError):
    """The device has too little memory for this picture, alone."""

    status, code = 500, "out_of_memory"


class NotFinite(ServiceError):
    """The network's values were not finite for this picture, alone."""

    status, code = 500, "not_finite"


class Busy(ServiceError):
    """Worth another try after ``retry_after`` seconds."""

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after)}


class QueueFull(Busy):
    """As many pictures wait as may."""

    status, code = 429, "queue_full"


class KeyBusy(Busy):
    """As many requests of this API key are being answered as may."""

    status, code = 429, "key_busy"


class Unavailable(Busy):
    """Not ready, draining, or broken."""

    status, code = 503, "unavailable"


class DeadlinePassed(ServiceError):
    """The deadline passed before there was a result."""

    status, code = 504, "deadline_passed"


class StartError(RuntimeError):
    """The service could not start, and a restart may cure it; the text says why and what to do."""


def problem(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The problem details of ``error`` as RFC 9457 names them, with ``code`` and ``request_id`` as extensions."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": phrase(error.status),
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    if error.fields:
        body["errors"] = list(error.fields)
    return body


def problem_response(
    error: ServiceError, request_id: str, members: Callable[[str], dict[str, Any]] | None = None
) -> Response:
    """``error`` as an HTTP response; ``members`` makes of its sentence what a dialect's clients look for."""
    body = problem(error, request_id) | (members(error.detail) if members is not None else {})
    return Response(orjson.dumps(body), error.status, headers=error.headers, media_type=PROBLEM_JSON)


def phrase(status: int) -> str:
    """The name of a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == 499 else "Error"
