"""The name by which a client, our log and our answers know a request."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers

_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


def request_id_for(headers: Headers) -> str:
    """What the client calls its request, if that may be repeated to others; else a new id."""
    asked = headers.get("x-request-id", "")
    return asked if _ID.fullmatch(asked) else uuid.uuid4().hex
