"""The failures that are reported to a client, each with its HTTP status.

    ServiceError
      BadImage 400          BadRequest 400        Unauthorized 401      SlowBody 408          TooLarge 413
      NoSuchModel 404       UnsupportedImage 415  BadOption 422         ClientGone 499
      ImageFailed 500       OutOfMemory 500       NotFinite 500
      Busy (has a Retry-After): QueueFull 429, KeyBusy 429, Unavailable 503
      DeadlinePassed 504

Their ``code`` is the one vocabulary of reasons: the problem's ``code``, the log's, and the label of
``frcnn_rejected_total{reason}``. Every message says what to do. What is sent never holds a traceback, a path or an
image's bytes. ``service/api/problems.py`` writes them as problem documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ServiceError(Exception):
    """A failure with an HTTP status and a ``code`` for machines; its text is for people."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str, *, fields: Sequence[dict[str, str]] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = tuple(fields)

    @property
    def headers(self) -> dict[str, str]:
        """Return the response headers that belong to this failure."""
        return {}


class BadImage(ServiceError):
    """The bytes begin like an image and cannot be decoded."""

    status, code = 400, "bad_image"


class BadRequest(ServiceError):
    """The request, or the JSON or multipart of its body, is broken."""

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
        return {"Connection": "close"}  # so that the client does not send the rest of the body


class NoSuchModel(ServiceError):
    """The address names another model than is served."""

    status, code = 404, "no_such_model"


class UnsupportedImage(ServiceError):
    """Not one of the supported formats, judged by content."""

    status, code = 415, "unsupported_image"


class BadOption(ServiceError):
    """An option is unknown or out of range; ``fields`` names each."""

    status, code = 422, "bad_option"


class ClientGone(ServiceError):
    """The client closed the connection before its response; only the log and the metrics record it."""

    status, code = 499, "client_gone"


class ImageFailed(ServiceError):
    """The detector failed on this image, alone."""

    status, code = 500, "image_failed"


class OutOfMemory(ServiceError):
    """The device has too little memory for this image, alone."""

    status, code = 500, "out_of_memory"


class NotFinite(ServiceError):
    """The network's values were not finite for this image, alone."""

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
    """The images or request bodies in progress fill their limit, or leave no time for this one."""

    status, code = 429, "queue_full"


class KeyBusy(Busy):
    """The requests of this API key in progress fill their limit."""

    status, code = 429, "key_busy"


class Unavailable(Busy):
    """Not ready, draining, or broken."""

    status, code = 503, "unavailable"


class DeadlinePassed(ServiceError):
    """The deadline passed before there was a result."""

    status, code = 504, "deadline_passed"


class StartError(RuntimeError):
    """The service could not start, and a restart may cure it; the text says why and what to do."""
