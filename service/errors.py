"""What can go wrong, each with its HTTP status, and how it reads: ``application/problem+json`` (RFC 9457).

    ServiceError
      BadImage 400          BadRequest 400        Unauthorized 401      TooLarge 413
      UnsupportedImage 415  BadOption 422         ClientGone 499        PictureFailed 500
      Busy (has a Retry-After): QueueFull 429, Unavailable 503
      DeadlinePassed 504

Every sentence says what to do about it. What is sent never holds a traceback, a path or a picture's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
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
    """The body's envelope (JSON, multipart) is broken or holds no picture."""

    status, code = 400, "bad_request"


class Unauthorized(ServiceError):
    """No API key, or a wrong one."""

    status, code = 401, "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="frcnn"'}


class TooLarge(ServiceError):
    """Over the limit of bytes or pixels."""

    status, code = 413, "too_large"


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


class Unavailable(Busy):
    """Not ready, draining, or broken."""

    status, code = 503, "unavailable"


class DeadlinePassed(ServiceError):
    """The deadline passed before there was a result."""

    status, code = 504, "deadline_passed"


def problem(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The problem details of ``error`` as RFC 9457 names them, with ``code`` and ``request_id`` as extensions."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": _title(error.status),
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    if error.fields:
        body["errors"] = list(error.fields)
    return body


def problem_response(error: ServiceError, request_id: str) -> Response:
    """``error`` as an HTTP response."""
    return Response(
        orjson.dumps(problem(error, request_id)), error.status, headers=error.headers, media_type=PROBLEM_JSON
    )


def from_http_exception(error: HTTPException) -> ServiceError:
    """The framework's own 404, 405 and the like as one of ours, with a sentence that helps."""
    sentences = {
        404: "There is nothing at this address; GET /docs lists the routes.",
        405: "This route does not take this method; GET /docs lists the routes and their methods.",
    }
    detail = sentences.get(error.status_code, str(error.detail))
    return _Framework(error.status_code, detail, dict(error.headers or {}))


def bad_options(details: Sequence[Any]) -> BadOption:
    """Pydantic's list of errors as one sentence, and each as ``{"name", "problem"}``."""
    fields = []
    for detail in details:
        # The place is ("query", "name"), ("header", "x-name") or ("name", 0): the first word may be the source.
        place = [str(part) for part in detail["loc"] if part not in ("query", "header", "body")]
        name = place[0] if place else "body"
        message = str(detail["msg"]).removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = "there is no such option; GET /docs lists them"
        field = {"name": name, "problem": message[:1].lower() + message[1:]}
        if field not in fields:
            fields.append(field)
    return BadOption("; ".join(f"{field['name']}: {field['problem']}" for field in fields) + ".", fields=fields)


async def handle_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for ours and for its own errors: a problem, whose code the log and the counters see too."""
    if isinstance(error, HTTPException):
        error = from_http_exception(error)
    elif isinstance(error, RequestValidationError):
        error = bad_options(error.errors())
    assert isinstance(error, ServiceError)
    request.scope["notes"]["problem"] = error.code
    return problem_response(error, request.scope["request_id"])


class _Framework(ServiceError):
    """An error that the framework raised, with the status and headers it chose."""

    def __init__(self, status: int, detail: str, headers: dict[str, str]) -> None:
        super().__init__(detail)
        self.status = status  # type: ignore[misc]  # the one error whose status is not its class's
        self.code = _title(status).lower().replace(" ", "_")  # type: ignore[misc]
        self._headers = headers

    @property
    def headers(self) -> dict[str, str]:
        return self._headers


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == 499 else "Error"
