"""``frcnn detect --url``: pictures and folders through a service that runs elsewhere, to lines of JSON."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.client import AsyncClient, DetectError, Found

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

err = Console(stderr=True)


def detect_remotely(
    url: str, given: Iterable[Path], out_path: Path | None, at_once: int, api_key: str | None, **options: Any
) -> bool:
    """Write a line for each picture, to ``out_path`` or the standard output, and whether all went well.

    Pictures that ``out_path`` already has are left out, so a second run goes on where the first was cut off; those that
    failed have no line, and are tried again.
    """
    done = finished(out_path) if out_path is not None and out_path.exists() else set()
    pictures = [path for path in expand(given) if str(path) not in done]
    if done:
        err.print(f"{out_path} has {len(done)} already; {len(pictures)} to go", highlight=False, soft_wrap=True)
    with nullcontext(sys.stdout.buffer) if out_path is None else out_path.open("ab") as lines:
        return asyncio.run(_ask(url, pictures, lines, at_once, api_key, options))


def expand(given: Iterable[Path]) -> Iterator[Path]:
    """Files as they are; of folders the pictures in them, and in theirs, by suffix and in order."""
    for path in given:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        else:
            yield path


def finished(out_path: Path) -> set[str]:
    """The files that ``out_path`` has a line for. A last line that was cut off is taken away, to be written again."""
    written = out_path.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if len(whole) < len(written):
        with out_path.open("r+b") as file:
            file.truncate(len(whole))
    try:
        return {orjson.loads(line)["file"] for line in whole.splitlines()}
    except (orjson.JSONDecodeError, LookupError, TypeError):
        raise ValueError(
            f"{out_path} holds something else than lines of JSON from here; choose another --out"
        ) from None


def line(path: Path, found: Found) -> bytes:
    """One line of JSON: the keys of ``frcnn detect --json``."""
    document = {
        "file": str(path),
        "image": {"width": found.width, "height": found.height},
        "boxes": found.boxes,
        "scores": found.scores,
        "labels": found.labels,
        "class_ids": found.class_ids,
    }
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


async def _ask(
    url: str, pictures: list[Path], lines: BinaryIO, at_once: int, api_key: str | None, options: dict[str, Any]
) -> bool:
    well = True
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # A picture's patience: in a queue of its own folder's making it may wait a good while.
    async with AsyncClient(url, api_key=api_key, timeout=120.0, tries=100) as client:
        with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
            task = bar.add_task("detecting", total=len(pictures))
            async for path, outcome in client.detect_many(pictures, at_once=at_once, **options):
                if isinstance(outcome, Found):
                    lines.write(line(path, outcome))
                    lines.flush()  # what is paid for stays, whatever happens to the rest
                else:
                    well = False
                    err.print(f"{path}: {outcome}", style="red", markup=False, highlight=False, soft_wrap=True)
                    _give_up_if_hopeless(outcome)
                bar.advance(task)
    return well


def _give_up_if_hopeless(outcome: DetectError | OSError) -> None:
    """A wrong key, or a service that has not been heard of for minutes, is so for the next thousand pictures too."""
    if isinstance(outcome, DetectError) and outcome.status in (None, 401, 404):
        raise outcome
