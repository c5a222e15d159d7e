"""Parse a request's body: the bytes of its images, and the options beside them.

Three forms are accepted: the raw image, multipart with file fields, and JSON with base64. Nothing is written to disk.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BadOption, BadRequest

IMAGE_FIELD = "image"
MAX_PARTS = 128
MAX_FIELD_BYTES = 64 * 1024


Parsed = tuple[tuple[bytes, ...], dict[str, Any]]


def parse_body(body: bytes, content_type: str) -> Parsed:
    """Return the images in ``body``, and its other fields by name (a list where a form field is repeated).

    Whatever is neither multipart nor JSON is taken for a raw image: the content says what it is, not the header.
    Blocking work for a thread. Raises ``BadRequest`` for broken JSON or multipart, ``BadOption`` where no image is in
    it.
    """
    kind, parameters = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return _parse_multipart(body, parameters.get(b"boundary", b""))
    if _is_json(kind):
        return _parse_json(body)
    return (body,), {}


def is_raw(content_type: str) -> bool:
    """Say whether a body of this type is the image itself, so that there is nothing to parse."""
    kind, _ = parse_options_header(content_type)
    return kind != b"multipart/form-data" and not _is_json(kind)


def _is_json(kind: bytes) -> bool:
    return kind == b"application/json" or kind.endswith(b"+json")


def _parse_json(body: bytes) -> Parsed:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f'The body is not JSON ({error}); send {{"image": "<base64>", ...options}}.') from None
    if not isinstance(document, dict):
        raise BadRequest('The JSON body must be an object; send {"image": "<base64>", ...options}.')
    text = document.pop(IMAGE_FIELD, None)
    if not isinstance(text, str):
        raise _no_image("a string field `image` that holds the image in base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        image = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("The field `image` is not base64; encode the image's bytes with standard base64.") from None
    return (image,), document


def _parse_multipart(body: bytes, boundary: bytes) -> Parsed:
    if not boundary:
        raise BadRequest("The multipart header names no boundary; let the HTTP client write the Content-Type.")
    reader = _MultipartReader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise BadRequest(
            "The multipart body is broken; let the HTTP client write it (curl -F image=@image.jpg)."
        ) from None
    if not reader.finished:
        raise BadRequest("The multipart body ends in the middle; send all of it, with the closing boundary.")
    if not reader.images:
        raise _no_image("a file field `image` (curl -F image=@image.jpg)")
    options = {name: values[0] if len(values) == 1 else values for name, values in reader.fields.items()}
    return tuple(reader.images), options


def _no_image(expected: str) -> BadOption:
    return BadOption(
        f"The request holds no image; send {expected}.", fields=[{"name": IMAGE_FIELD, "problem": "is missing"}]
    )


class _MultipartReader:
    """Collects the parts of one body. A part named ``image`` is an image, and any other an option's text."""

    def __init__(self) -> None:
        self.images: list[bytes] = []
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
        """Return the functions that python-multipart calls as it reads the body."""
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
            raise BadRequest("A part of the multipart body has no name; give each part one (`image` for an image).")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._name != IMAGE_FIELD and self._size > MAX_FIELD_BYTES:
            raise BadRequest(f"The form field `{self._name[:40]}` is over {MAX_FIELD_BYTES} bytes; shorten it.")
        self._data.append(data[start:end])

    def _end(self) -> None:
        data = b"".join(self._data)
        if self._name == IMAGE_FIELD:
            self.images.append(data)
        else:
            self.fields.setdefault(self._name, []).append(data.decode("utf-8", "replace"))

    def _finish(self) -> None:
        self.finished = True
