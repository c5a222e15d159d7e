"""Problem documents (RFC 9457, ``application/problem+json``): the body of every response that reports a failure.

Nothing here may import torch, since Ray's proxy writes problems too.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from service.errors import ServiceError

PROBLEM_JSON = "application/problem+json"
MAX_DETAIL = 4096  # characters


def problem_document(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Return RFC 9457's problem details of ``error``, with ``code`` and ``request_id`` as extensions.

    The document is bounded and can be written as JSON, whatever words of a client the error repeats.
    """
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": reason_phrase(error.status),
        "status": error.status,
        "detail": _sendable(error.detail),
        "code": error.code,
        "request_id": request_id,
    }
    if error.fields:
        body["errors"] = [{key: _sendable(text) for key, text in field.items()} for field in error.fields]
    return body


def problem_response(
    error: ServiceError, request_id: str, members: Callable[[str], dict[str, Any]] | None = None
) -> Response:
    """Return ``error`` as an HTTP response. members: returns further members of the document for its message."""
    body = problem_document(error, request_id) | (members(_sendable(error.detail)) if members is not None else {})
    return Response(orjson.dumps(body), error.status, headers=error.headers, media_type=PROBLEM_JSON)


def _sendable(text: str) -> str:
    """Cut ``text``, and replace what UTF-8 cannot encode."""
    return text[:MAX_DETAIL].encode("utf-8", "replace").decode()


def reason_phrase(status: int) -> str:
    """Return the reason phrase of an HTTP status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request" if status == 499 else "Error"
