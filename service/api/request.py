"""The envelope: a request's body -> the bytes of its pictures and the options beside them.

Three forms are taken: the raw picture, multipart with file fields, and JSON with base64. The body is counted while it
streams in, so that one over the limit is refused before it is all read; it stays in memory, never on disk.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.errors import BadOption, BadRequest, ClientGone, TooLarge

PICTURE_FIELD = "image"
MAX_PARTS = 128
MAX_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Upload:
    """What a body held: each picture's bytes, in order, and the other fields by name (a list where one is repeated)."""

    pictures: tuple[bytes, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


async def read_body(request: Request, limit: int, take: Callable[[int], None]) -> bytes:
    """The whole body, at most ``limit`` bytes; ``take`` is told of every chunk that is kept, and may raise.

    Raises ``TooLarge`` as soon as it is over, ``ClientGone``.
    """
    refusal = TooLarge(f"The body is over {limit} bytes; send a smaller picture, or compress it more.")
    announced = request.headers.get("content-length", "")
    over = announced.isdecimal() and int(announced) > limit
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > 2 * limit:
                break
            if over := over or size > limit:
                # Most clients read an answer only once they have sent it all: let those that are a little over do so.
                chunks.clear()
            else:
                take(len(chunk))
                chunks.append(chunk)
    except ClientDisconnect:
        raise ClientGone("The client hung up while its body was being read.") from None
    if over:
        raise refusal
    return b"".join(chunks)


def open_envelope(body: bytes, content_type: str) -> Upload:
    """The pictures and options in ``body``; blocking work for a thread.

    Whatever is neither multipart nor JSON is taken for a raw picture: what it is, its content says, not its header.
    Raises ``BadRequest`` for a broken envelope, ``BadOption`` for one without a picture.
    """
    kind, parameters = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return _from_multipart(body, parameters.get(b"boundary", b""))
    if _is_json(kind):
        return _from_json(body)
    return Upload((body,))


def is_raw(content_type: str) -> bool:
    """Whether a body of this type is the picture itself, so that there is no envelope to open."""
    kind, _ = parse_options_header(content_type)
    return kind != b"multipart/form-data" and not _is_json(kind)


def _is_json(kind: bytes) -> bool:
    return kind == b"application/json" or kind.endswith(b"+json")


def _from_json(body: bytes) -> Upload:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f'The body is not JSON ({error}); send {{"image": "<base64>", ...options}}.') from None
    if not isinstance(document, dict):
        raise BadRequest('The JSON body must be an object; send {"image": "<base64>", ...options}.')
    text = document.pop(PICTURE_FIELD, None)
    if not isinstance(text, str):
        raise _without_picture("a string field `image` that holds the picture in base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        picture = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("The field `image` is not base64; encode the picture's bytes with standard base64.") from None
    return Upload((picture,), document)


def _from_multipart(body: bytes, boundary: bytes) -> Upload:
    if not boundary:
        raise BadRequest("The multipart header names no boundary; let the HTTP client write the Content-Type.")
    reader = _MultipartReader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise BadRequest(
            "The multipart body is broken; let the HTTP client write it (curl -F image=@picture.jpg)."
        ) from None
    if not reader.finished:
        raise BadRequest("The multipart body ends in the middle; send all of it, with the closing boundary.")
    if not reader.pictures:
        raise _without_picture("a file field `image` (curl -F image=@picture.jpg)")
    options = {name: values[0] if len(values) == 1 else values for name, values in reader.fields.items()}
    return Upload(tuple(reader.pictures), options)


def _without_picture(wanted: str) -> BadOption:
    return BadOption(
        f"The request holds no picture; send {wanted}.", fields=[{"name": PICTURE_FIELD, "problem": "is missing"}]
    )


class _MultipartReader:
    """Collects the parts of one body. A part is a picture if it is named ``image``, and else an option's text."""

    def __init__(self) -> None:
        self.pictures: list[bytes] = []
        self.fields: dict[str, list[str]] = {}
        self.finished = False
        self._parts = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def callbacks(self) -> Any:
        """What python-multipart calls as it walks through the body."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header_name,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest(f"The multipart body has over {MAX_PARTS} parts; send fewer.")
        self._disposition, self._name, self._data, self._size = b"", "", [], 0

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        self._name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if not self._name:
            raise BadRequest("A part of the multipart body has no name; give each part one (`image` for a picture).")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._name != PICTURE_FIELD and self._size > MAX_FIELD_BYTES:
            raise BadRequest(f"The form field `{self._name[:40]}` is over {MAX_FIELD_BYTES} bytes; shorten it.")
        self._data.append(data[start:end])

    def _end(self) -> None:
        data = b"".join(self._data)
        if self._name == PICTURE_FIELD:
            self.pictures.append(data)
        else:
            self.fields.setdefault(self._name, []).append(data.decode("utf-8", "replace"))

    def _finish(self) -> None:
        self.finished = True
