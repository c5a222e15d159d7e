"""The id by which the client, the log and the responses name a request."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers

_ID = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


def request_id_for(headers: Headers) -> str:
    """Return the client's id of its request where its characters are safe to repeat; otherwise a new one."""
    client_id = headers.get("x-request-id", "")
    return client_id if _ID.fullmatch(client_id) else uuid.uuid4().hex
