"""Fill the marked sections of a Markdown page, and format tables.

A section begins with ``<!-- made: NAME -->`` on a line of its own and ends with ``<!-- end -->``.
"""

import re
from collections.abc import Mapping, Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: bool = False) -> str:
    """Return a Markdown table; with ``numeric`` every column but the first is aligned to the right."""
    rules = ["---", *(["---:" if numeric else "---"] * (len(header) - 1))]
    lines = [header, rules, *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def fill_sections(page: str, sections: Mapping[str, str]) -> str:
    """Return the page with each named section replaced; raise ValueError where the page lacks one."""
    for name, text in sections.items():
        pattern = rf"(<!-- made: {re.escape(name)} -->\n).*?(<!-- end -->)"
        page, count = re.subn(pattern, lambda match, text=text: match[1] + text + match[2], page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the page has {count} sections marked {name!r}, and needs one")
    return page
