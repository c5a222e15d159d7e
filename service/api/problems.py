"""How failures reach the client: ours, the framework's own, and Pydantic's, all as one kind of problem."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.schemas import bad_options
from service.errors import ServiceError, phrase, problem_response


async def handle_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for ours and for its own errors: a problem, whose code the log and the counters see too."""
    if isinstance(error, HTTPException):
        error = from_http_exception(error)
    elif isinstance(error, RequestValidationError):
        error = bad_options(error.errors())
    assert isinstance(error, ServiceError)
    request.scope["notes"]["problem"] = error.code
    return problem_response(error, request.scope["request_id"], request.scope.get("dialect"))


def from_http_exception(error: HTTPException) -> ServiceError:
    """The framework's own 404, 405 and the like as one of ours, with a sentence that helps."""
    sentences = {
        404: "There is nothing at this address; GET /docs lists the routes.",
        405: "This route does not take this method; GET /docs lists the routes and their methods.",
    }
    detail = sentences.get(error.status_code, str(error.detail))
    return _Framework(error.status_code, detail, dict(error.headers or {}))


class _Framework(ServiceError):
    """An error that the framework raised, with the status and headers it chose."""

    def __init__(self, status: int, detail: str, headers: dict[str, str]) -> None:
        super().__init__(detail)
        self.status = status  # type: ignore[misc]  # the one error whose status is not its class's
        self.code = phrase(status).lower().replace(" ", "_")  # type: ignore[misc]
        self._headers = headers

    @property
    def headers(self) -> dict[str, str]:
        return self._headers
