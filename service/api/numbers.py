"""Numbers in headers, which a client may make as long as it likes."""

from __future__ import annotations


def whole_number(text: str, maximum: int) -> int | None:
    """Return the whole number that ``text`` is, or ``maximum`` where it is larger; None for other text.

    ``int`` itself takes time with the square of the digits, and raises ``ValueError`` above 4,300 of them.
    """
    if not (text.isascii() and text.isdecimal()):
        return None
    digits = text.lstrip("0")
    return maximum if len(digits) > len(str(maximum)) else min(int(digits or "0"), maximum)
