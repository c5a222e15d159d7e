"""``/``: the page, and its files under ``/web``. Nothing comes from another host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

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

router = APIRouter(include_in_schema=False)


@router.get("/")
async def page() -> FileResponse:
    """Return the page. It uses the same routes as every other client."""
    return FileResponse(FOLDER / "index.html", headers=_HEADERS)


class Files(StaticFiles):
    """The page's files, which a browser revalidates: an update of the service reaches it at once."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """Return a file, or 304 where the browser has it."""
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response
