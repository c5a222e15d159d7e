"""Tables, and the JSON files in ``benchmarks/results/``."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks/results"


@dataclass(frozen=True)
class Table:
    """Rows of text below column names; whoever makes the rows formats the numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the table for a document, with the title as a line above."""
        return f"\n{self.title}\n\n{markdown_table(self.columns, self.rows)}\n"

    def print(self) -> None:
        """Print the table to the terminal."""
        from rich.console import Console  # not at the top: benchmarks.gpu runs without it
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, title_justify="left")
        for number, name in enumerate(self.columns):
            table.add_column(name, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        Console(width=150 if not Console().is_terminal else None).print(table)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---:") -> str:
    """Return a Markdown table. align: of all columns but the first, which is on the left."""
    lines = [columns, ["---", *[align] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def load(name: str) -> dict[str, Any]:
    """Return the results of that name, or an empty dict. ``gpu`` has a file for each card and date: all, by stem."""
    if name == "gpu":
        return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("gpu-*.json"))}
    path = RESULTS / f"{name}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return result


def save(name: str, result: Mapping[str, Any]) -> None:
    """Write ``results/NAME.json``. ``python -m benchmarks.report`` then updates docs/performance.md."""
    write_json(RESULTS / f"{name}.json", result)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(path)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most of the values, and how many there are."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": len(values)}


def format_milliseconds(seconds: Mapping[str, float]) -> str:
    """Format a spread in seconds as "median (low to high)", in milliseconds."""
    digits = 0 if seconds["median"] >= 1 else 1
    median, low, high = (f"{seconds[name] * 1000:,.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"
