"""docs/overload.md: the tables that benchmarks write into it, each between its own markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs/overload.md"


def fill(name: str, text: str) -> None:
    """Put ``text`` between the markers of ``name``. Raises ``ValueError`` where the page has none."""
    hole = rf"(<!-- made: {name} -->\n).*?(<!-- end -->)"
    page, count = re.subn(hole, lambda m: m[1] + text.rstrip() + "\n" + m[2], PAGE.read_text(), flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{PAGE.name} has no place for {name}.")
    PAGE.write_text(page)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; numbers, so all but the first column, to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
