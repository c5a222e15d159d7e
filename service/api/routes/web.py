"""``/``: the page, and its files under ``/web``. Nothing comes from another host."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.staticfiles import NotModifiedResponse, PathLike, StaticFiles
from starlette.types import Receive, Scope, Send

FOLDER = Path(__file__).resolve().parents[2] / "web"

# Beyond what every response carries: the page may use the camera, and nothing else that needs a permission.
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), payment=(), usb=()",
}

_LONGEST_PATH = 256  # characters; the time of a look-up grows with the square of them

router = APIRouter(include_in_schema=False)


class _WholeFile(FileResponse):
    """A file that is sent whole: a Range is ignored, and a malformed one is no error, which would be plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        self.headers["Accept-Ranges"] = "none"
        headers = [header for header in scope["headers"] if header[0] != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


@router.get("/")
async def page() -> FileResponse:
    """Return the page. It uses the same routes as every other client."""
    return _WholeFile(FOLDER / "index.html", headers=_HEADERS)


class Files(StaticFiles):
    """The page's files, which a browser revalidates: an update of the service reaches it at once."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, without a look at the disk for a path that is longer than any file's."""
        if len(scope["path"]) > _LONGEST_PATH:
            raise HTTPException(404)
        await super().__call__(scope, receive, send)

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file, or 304 where the browser has it."""
        headers = {"Cache-Control": "no-cache"}
        response = _WholeFile(full_path, status_code, headers, stat_result=stat_result)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response
