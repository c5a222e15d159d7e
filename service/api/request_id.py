"""The id by which the client, the log and the responses name a request."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers

_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


def request_id_for(headers: Headers) -> str:
    """Return the client's own id of its request where its characters are safe to repeat; else a new one."""
    own = headers.get("x-request-id", "")
    return own if _ID.fullmatch(own) else uuid.uuid4().hex
