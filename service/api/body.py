"""Parse a request's body: the bytes of its images, and the options beside them.

Three forms are accepted: the raw image, multipart with file fields, and JSON with base64. Nothing is written to disk.
The time and the memory that parsing takes are bounded for every content: images are cut out of the body by searches for
what ends them, and all else together is at most 64 KiB.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from python_multipart.multipart import parse_options_header

from service.api.json_body import MAX_OPTIONS_BYTES, parse_json
from service.errors import BadOption, BadRequest, TooLarge

IMAGE_FIELD = "image"
MAX_PARTS = 128
MAX_CONTENT_TYPE = 1024  # characters of the header
MAX_PART_HEAD = 4096  # bytes of all headers of a part


Parsed = tuple[tuple[bytes, ...], dict[str, Any]]


def parse_body(body: bytes, content_type: str) -> Parsed:
    """Return the images in ``body``, and its other fields by name (a list where a form field is repeated).

    Whatever is neither multipart nor JSON is taken for a raw image: the content says what it is, not the header.
    Blocking work for a thread. Raises ``BadRequest`` for broken JSON or multipart, ``BadOption`` where no image is in
    it, ``TooLarge`` where the other fields have over 64 KiB.
    """
    kind, parameters = _parse_content_type(content_type)
    if kind == b"multipart/form-data":
        return _parse_multipart(body, parameters.get(b"boundary", b""))
    if _is_json(kind):
        image, options = parse_json_image(body, IMAGE_FIELD, '{"image": "<base64>", ...options}')
        return (image,), options
    return (body,), {}


def is_raw(content_type: str) -> bool:
    """Say whether a body of this type is the image itself, so that there is nothing to parse.

    Raises ``BadRequest`` for a header that is too long to be a type.
    """
    kind, _ = _parse_content_type(content_type)
    return kind != b"multipart/form-data" and not _is_json(kind)


def parse_json_image(body: bytes, field: str, example: str) -> tuple[bytes, dict[str, Any]]:
    """Return the image that the member ``field`` of a JSON object holds in base64, and the object's other members.

    example: the expected JSON, for the error's text. Raises ``BadRequest``, ``BadOption``, ``TooLarge``.
    """
    document = parse_json(body, example)
    text = document.members.pop(field, None)
    if not isinstance(text, str):
        raise _no_image(f"a string field `{field}` that holds the image in base64", field)
    image = document.decode_base64(text, field)
    return image, document.restore(document.members)


def _parse_content_type(content_type: str) -> tuple[bytes, dict[bytes, bytes]]:
    if len(content_type) > MAX_CONTENT_TYPE:
        raise BadRequest(f"The Content-Type is over {MAX_CONTENT_TYPE} characters; let the HTTP client write it.")
    return parse_options_header(content_type)


def _is_json(kind: bytes) -> bool:
    return kind == b"application/json" or kind.endswith(b"+json")


def _parse_multipart(body: bytes, boundary: bytes) -> Parsed:
    if not boundary:
        raise BadRequest("The multipart header names no boundary; let the HTTP client write the Content-Type.")
    images: list[bytes] = []
    fields: dict[str, list[str]] = {}
    size = 0
    for head, start, end in _parts(body, b"\r\n--" + boundary):
        name = _field_name(head)
        if name == IMAGE_FIELD:
            images.append(body[start:end])
            continue
        size += len(name) + end - start
        if size > MAX_OPTIONS_BYTES:
            raise TooLarge(
                f"The form has over {MAX_OPTIONS_BYTES} bytes beside its images, up to the field `{name[:40]}`; "
                "send fewer options, or shorter ones."
            )
        fields.setdefault(name, []).append(body[start:end].decode("utf-8", "replace"))
    if not images:
        raise _no_image("a file field `image` (curl -F image=@image.jpg)", IMAGE_FIELD)
    return tuple(images), {name: values[0] if len(values) == 1 else values for name, values in fields.items()}


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the headers of each part, and where in ``body`` its content starts and ends.

    delimiter: a line break, two dashes and the boundary (RFC 2046, section 5.1.1). No content may hold it, whatever
    follows; so there is one search for each part. Raises ``BadRequest`` for a broken body and for too many parts.
    """
    position = -2 if body.startswith(delimiter[2:]) else body.find(delimiter)  # the first needs no line break
    if position == -1:
        raise _broken()
    for number in itertools.count():
        position += len(delimiter)
        if body.startswith(b"--", position):
            return  # the closing delimiter: what follows is to be ignored
        if number == MAX_PARTS:
            raise BadRequest(f"The multipart body has over {MAX_PARTS} parts; send fewer.")
        line_end = body.find(b"\r\n", position, position + MAX_PART_HEAD)
        if line_end == -1 or body[position:line_end].strip(b" \t"):
            raise _unfinished() if len(body) - position < 2 else _broken()
        head_end = body.find(b"\r\n\r\n", line_end, line_end + MAX_PART_HEAD)
        if head_end == -1:
            raise _unfinished() if len(body) - line_end < MAX_PART_HEAD else _broken()
        position = body.find(delimiter, head_end + 4)
        if position == -1:
            raise _unfinished()
        yield body[line_end + 2 : head_end], head_end + 4, position


def _field_name(head: bytes) -> str:
    """Return the name in the headers of a part. Raises ``BadRequest`` where there is none."""
    disposition = b""
    for line in head.split(b"\r\n") if head else ():
        name, colon, value = line.partition(b":")
        if not colon:
            raise _broken()
        if name.lower() == b"content-disposition":
            disposition = value.strip()
    _, parameters = parse_options_header(disposition)
    if not (field := parameters.get(b"name", b"").decode("utf-8", "replace")):
        raise BadRequest("A part of the multipart body has no name; give each part one (`image` for an image).")
    return field


def _broken() -> BadRequest:
    return BadRequest("The multipart body is broken; let the HTTP client write it (curl -F image=@image.jpg).")


def _unfinished() -> BadRequest:
    return BadRequest("The multipart body ends in the middle; send all of it, with the closing boundary.")


def _no_image(expected: str, field: str) -> BadOption:
    return BadOption(f"The request holds no image; send {expected}.", fields=[{"name": field, "problem": "is missing"}])
