"""Parse a JSON body that holds images in base64, without giving the images to a JSON parser.

A parser holds the interpreter's lock until it is done, and turns a million empty lists into a gigabyte. So a search for
quotation marks cuts the long strings out, and only the rest, whose size is bounded, is parsed.
"""

from __future__ import annotations

import secrets
from binascii import a2b_base64
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any

import orjson

from service.errors import BadRequest, TooLarge

MAX_OPTIONS_BYTES = 64 * 1024  # of all that is not an image, in JSON as in a form
_LONG = 1024  # bytes of a string that is cut out
_PIECE = 64 * 1024  # bytes of base64 decoded at once; other threads run between two pieces
_MAX_DEPTH = 64
_BACKSLASH = ord("\\")
_WHITE_SPACE = b" \t\n\r\v\f"

Span = tuple[int, int]  # a string literal's quotation marks in the body


class JsonBody:
    """A JSON object whose strings over 1 KiB are still in the body's bytes.

    members: the object, in which placeholders stand for those strings: ``decode_base64`` reads one as an image, and
    ``restore`` puts the others back.
    """

    def __init__(self, body: bytes, members: dict[str, Any], strings: dict[str, Span], spare: int) -> None:
        """Hold the parsed object. strings: by placeholder. spare: bytes that may still be put back."""
        self.members = members
        self._body = body
        self._strings = strings
        self._spare = spare

    def decode_base64(self, text: str, field: str) -> bytes:
        """Return the bytes that ``text``, a string of the object, holds in standard base64 or as a ``data:`` URL.

        White space in it is skipped. Raises ``BadRequest``, which names ``field``, where it is not base64.
        """
        span = self._strings.pop(text, None)
        try:
            return _decode([text.encode("ascii")] if span is None else _unescaped_pieces(self._body, span))
        except ValueError:
            raise BadRequest(
                f"The field `{field}` is not base64; encode the image's bytes with standard base64."
            ) from None

    def restore(self, value: Any) -> Any:
        """Return ``value``, the object or a part of it, with its long strings. Raises ``TooLarge``, ``BadRequest``."""
        return self._restore(value, 0) if self._strings else value

    def _restore(self, value: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise BadRequest(f"The JSON is nested over {_MAX_DEPTH} levels deep; no option is.")
        if isinstance(value, list):
            return [self._restore(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {self._restore(name, depth + 1): self._restore(item, depth + 1) for name, item in value.items()}
        if not isinstance(value, str) or value not in self._strings:
            return value
        start, end = self._strings[value]
        self._spare -= end - start
        if self._spare < 0:
            raise _too_large()
        try:
            return orjson.loads(self._body[start : end + 1])
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"A string of the JSON body is broken ({error.msg}).") from None


def parse_json(body: bytes, example: str) -> JsonBody:
    """Parse ``body``, a JSON object; at most 64 KiB of it may be other than strings over 1 KiB.

    example: the expected JSON, for the error's text. Raises ``BadRequest``, ``TooLarge``.
    """
    text, strings = (body, {}) if len(body) <= MAX_OPTIONS_BYTES else _cut_long_strings(body)
    try:
        members = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # The position is one in what is left of the body.
        raise BadRequest(f"The body is not JSON ({error.msg if strings else error}); send {example}.") from None
    if not isinstance(members, dict):
        raise BadRequest(f"The JSON body must be an object; send {example}.")
    return JsonBody(body, members, strings, MAX_OPTIONS_BYTES - len(text))


def _cut_long_strings(body: bytes) -> tuple[bytes, dict[str, Span]]:
    """Return ``body`` with a placeholder for every long string, and where in the body each of these is.

    Strings with an escaped quotation mark stay, since they are not base64: so the number of steps is bounded by
    ``MAX_OPTIONS_BYTES``, whatever is sent. Raises ``TooLarge`` where more than that stays, ``BadRequest`` for a string
    without an end.
    """
    prefix = secrets.token_hex(8)  # no client can send a placeholder
    strings: dict[str, Span] = {}
    pieces: list[bytes] = []
    size = copied = position = 0  # size: bytes of the pieces; copied: the body up to here is in the pieces or cut out
    while (start := body.find(b'"', position)) >= 0:
        end = body.find(b'"', start + 1)
        if body[end - 1] == _BACKSLASH:
            end = _find_end(body, start, end)
        elif end - start > _LONG:
            placeholder = f"{prefix}{len(strings)}"
            strings[placeholder] = (start, end)
            pieces += body[copied:start], b'"%b"' % placeholder.encode()
            size += len(pieces[-2]) + len(pieces[-1])
            copied = end + 1
        if end < 0:
            raise BadRequest("The body is not JSON (a string has no end); send all of it.")
        position = end + 1
        if size + position - copied > MAX_OPTIONS_BYTES:
            raise _too_large()
    if size + len(body) - copied > MAX_OPTIONS_BYTES:
        raise _too_large()
    return b"".join([*pieces, body[copied:]]), strings


def _find_end(body: bytes, start: int, end: int) -> int:
    """Return the quotation mark that ends the string from ``start``; ``end`` is one that may be escaped; -1 for none.

    Raises ``TooLarge`` once the string is too long to be an option.
    """
    while end >= 0:
        if end - start > MAX_OPTIONS_BYTES:
            raise _too_large()
        before = end - 1
        while body[before] == _BACKSLASH:
            before -= 1
        if (end - before) % 2:
            break
        end = body.find(b'"', end + 1)
    return end


def _unescaped_pieces(body: bytes, span: Span) -> Iterator[bytes]:
    r"""Yield the text of a string literal, piece by piece, without JSON's escapes (PHP writes a slash as ``\/``).

    Raises ``ValueError`` for text that is not ASCII, or no JSON. Two backslashes in a row, which is no base64, may be
    separated, and are then an error too.
    """
    position, end = span[0] + 1, span[1]
    while position < end:
        piece = body[position : min(position + _PIECE, end)]
        if position + len(piece) < end and (escape := piece.rfind(b"\\", -6)) >= 0:
            piece = piece[:escape]  # an escape has up to 6 bytes: it stays whole
        position += len(piece)
        yield orjson.loads(b'"%b"' % piece).encode("ascii")


def _decode(pieces: Iterable[bytes]) -> bytes:
    """Decode base64 that comes in pieces, the first with a ``data:`` URL's head perhaps. Raises ``ValueError``."""
    decoded = BytesIO()
    rest, ended, first = b"", False, True
    for piece in pieces:
        if first and piece.startswith(b"data:"):
            piece = piece.partition(b",")[2]
        first = False
        text = rest + piece.translate(None, _WHITE_SPACE)
        if ended and text:
            raise ValueError("data after the padding")
        whole = len(text) - len(text) % 4
        decoded.write(a2b_base64(text[:whole], strict_mode=True))
        ended = ended or text.endswith(b"=", 0, whole)
        rest = text[whole:]
    if rest:
        raise ValueError("incorrect padding")
    return decoded.getvalue()


def _too_large() -> TooLarge:
    return TooLarge(
        f"The JSON has over {MAX_OPTIONS_BYTES} bytes beside its images; send fewer options, or shorter ones."
    )
