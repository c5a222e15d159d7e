"""Fill the places in documents that a command writes, each between two comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def fill(text: str, name: str, body: str, kind: str = "made") -> str:
    """Return ``text`` with ``body`` between ``<!-- KIND: NAME -->`` and the next ``<!-- end -->``.

    Raises ``ValueError`` where that marker or its end is missing, or there twice.
    """
    start = re.escape(f"<!-- {kind}: {name} -->\n")
    section = re.compile(rf"({start})(?:(?!<!-- {kind}: ).)*?(<!-- end -->)", re.DOTALL)
    text, count = section.subn(lambda match: match[1] + body + match[2], text)
    if count != 1:
        raise ValueError(f"There is not exactly one marker for {name!r} with an end.")
    return text


def fill_all(text: str, bodies: Mapping[str, str], kind: str = "made") -> str:
    """Do the same for several places; raises ``ValueError`` also for a marker that has no body."""
    names = re.findall(rf"<!-- {kind}: (\S+) -->", text)
    if sorted(names) != sorted(bodies):
        raise ValueError(f"The document has markers for {sorted(names)}, and there are texts for {sorted(bodies)}.")
    for name, body in bodies.items():
        text = fill(text, name, body, kind)
    return text


def fill_file(path: Path, name: str, body: str, kind: str = "made") -> None:
    """Fill one place of a file; ``body`` then ends with one line break."""
    path.write_text(fill(path.read_text(), name, body.rstrip() + "\n", kind))
