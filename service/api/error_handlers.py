"""Turn exceptions into responses: the service's, the framework's and Pydantic's, all as problem documents."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.context import request_context
from service.api.options import bad_options
from service.api.problems import problem_response, reason_phrase
from service.errors import ServiceError


async def handle_error(request: Request, error: Exception) -> Response:
    """Return ``error``, the service's or FastAPI's, as a response, and note its code for the log and the metrics."""
    if isinstance(error, HTTPException):
        error = from_http_exception(error)
    elif isinstance(error, RequestValidationError):
        error = bad_options(error.errors())
    assert isinstance(error, ServiceError)
    context = request_context(request)
    context.problem_code = error.code
    return problem_response(error, context.request_id, context.problem_members)


def from_http_exception(error: HTTPException) -> ServiceError:
    """Return the framework's 404, 405 and the like as a ``ServiceError`` whose message says what to do."""
    messages = {
        404: "There is nothing at this address; GET /docs lists the routes.",
        405: "This route does not take this method; GET /docs lists the routes and their methods.",
    }
    detail = messages.get(error.status_code, str(error.detail))
    return _FrameworkError(error.status_code, detail, dict(error.headers or {}))


class _FrameworkError(ServiceError):
    """An error that the framework raised, with the status and headers it chose."""

    def __init__(self, status: int, detail: str, headers: dict[str, str]) -> None:
        super().__init__(detail)
        self.status = status  # type: ignore[misc]  # the one error whose status is not its class's
        self.code = reason_phrase(status).lower().replace(" ", "_")  # type: ignore[misc]
        self._headers = headers

    @property
    def headers(self) -> dict[str, str]:
        return self._headers
