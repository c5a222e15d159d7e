"""Write the generated tables of docs/operations.md and docs/scaling.md: ``make docs``.

    python -m tools.docs            write them
    python -m tools.docs --check    change nothing; exit with 1 where a page differs from what would be written

The capacity model in docs/scaling.md multiplies measured processor times by assumed machines. The assumptions are the
other options; without them the defaults hold, which are those of the page in the repository.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from tools.docs import operations, scaling
from tools.docs.page import fill_sections

DOCS = Path(__file__).resolve().parents[2] / "docs"


def main() -> None:
    """Write both pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    for field in fields(scaling.Assumptions):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=field.default, help=f"assumed: {field.metadata['help']}")
    arguments = vars(parser.parse_args())
    check = arguments.pop("check")
    pages = {
        "operations.md": operations.sections(),
        "scaling.md": scaling.sections(scaling.Assumptions(**arguments)),
    }
    outdated = []
    for name, sections in pages.items():
        path = DOCS / name
        old = path.read_text()
        new = fill_sections(old, sections)
        if new != old:
            outdated.append(f"docs/{name}")
            if not check:
                path.write_text(new)
    if check and outdated:
        sys.exit(f"Out of date: {', '.join(outdated)}. Run make docs")


if __name__ == "__main__":
    main()
