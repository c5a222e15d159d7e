"""What a hostile client sends and what must be true of the answers: ``Case``, and functions that write requests.

``KEY`` is sent as the API key, which a server without keys ignores.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL import Image

from benchmarks.lib import hostile_images as images
from benchmarks.lib.raw_http import Exchange, Part

KEY = "a-key-of-the-benchmark"
DEADLINE_MS = 3000


@dataclass(frozen=True)
class Case:
    """One kind of hostile client.

    parts: of connection ``number``. connections: at once. repeats: one after another, on each. answers: how many each
    connection must get, None for any number. silent: no answer is no fault. statuses: that are allowed, beyond the
    general limits. closed_within: seconds after the last part within which the server must close. leave: seconds after
    the last part after which the client closes. read: whether the client reads. short: part of the short form.
    processor: seconds that the server may use, None for the deadline plus one. check: returns what is wrong, or "".
    """

    kind: str
    name: str
    parts: Callable[[int], Sequence[Part]]
    connections: int = 1
    repeats: int = 1
    answers: int | None = None
    silent: bool = False
    statuses: frozenset[int] | None = None
    closed_within: float | None = None
    leave: float | None = None
    read: bool = True
    short: bool = False
    deadline: float = DEADLINE_MS / 1000
    processor: float | None = None
    check: Callable[[Sequence[Exchange]], str] = lambda exchanges: ""


def head(
    path: str | bytes = "/detect",
    length: int | None = None,
    *headers: bytes,
    kind: str | None = "image/jpeg",
    method: str = "POST",
    close: bool = True,
    timeout_ms: int | None = DEADLINE_MS,
    key: str | None = KEY,
) -> bytes:
    """Return the head of a request. length: of its body, None where ``headers`` say it."""
    path = path.encode() if isinstance(path, str) else path
    lines = [method.encode() + b" " + path + b" HTTP/1.1", b"Host: x"]
    lines += [f"Content-Type: {kind}".encode()] if kind is not None else []
    lines += [b"Content-Length: %d" % length] if length is not None else []
    lines += [b"X-Request-Timeout-Ms: %d" % timeout_ms] if timeout_ms is not None else []
    lines += [f"X-API-Key: {key}".encode()] if key is not None else []
    lines += [*headers, b"Connection: close"] if close else headers
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(path: str | bytes = "/detect", body: bytes = b"", *headers: bytes, **options: Any) -> bytes:
    """Return a whole request; options as of ``head``."""
    return head(path, len(body), *headers, **options) + body


def post_json(document: Any, path: str = "/detect", *headers: bytes) -> bytes:
    """Return a request with JSON: a document, or bytes as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return post(path, body, *headers, kind="application/json")


def form(*fields: tuple[str, bytes], boundary: bytes = b"b", end: bytes = b"--") -> bytes:
    """Return a multipart body; a field named ``image`` is a file."""
    parts = []
    for name, value in fields:
        file = b'; filename="x.jpg"' if name == "image" else b""
        parts.append(
            b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
            % (boundary, name.encode(), file, value)
        )
    return b"".join(parts) + b"--" + boundary + end + b"\r\n"


def post_form(body: bytes, path: str = "/detect", boundary: str = "b") -> bytes:
    """Return a request with a multipart body."""
    return post(path, body, kind=f"multipart/form-data; boundary={boundary}")


@lru_cache
def small(width: int = 64, height: int = 48) -> bytes:
    """Return a small PNG."""
    return images.saved(Image.new("RGB", (width, height), (200, 30, 30)), "PNG")


@lru_cache
def photograph() -> bytes:
    """Return a JPEG of noise, 640 x 480."""
    return images.noise("JPEG", 640, 480)


def base64_of(data: bytes) -> str:
    """Return bytes in base64."""
    return base64.b64encode(data).decode()


def same_for_all(kind: str, name: str, make: Callable[[], bytes | Sequence[Part]], **options: Any) -> Case:
    """Return a case whose connections all send the same."""

    def parts(number: int) -> Sequence[Part]:
        made = make()
        return [made] if isinstance(made, bytes) else made

    return Case(kind, name, parts, **options)


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + closing * depth


def check_size(exchanges: Sequence[Exchange], width: int, height: int) -> str:
    """Check that each connection got its own image's answer, once."""
    for exchange in exchanges:
        for answer in exchange.answers:
            if answer.status == 200 and json.loads(answer.body)["image"] != {"width": width, "height": height}:
                return "an answer of another image"
    return ""
