"""``frcnn detect --url``: send image files and folders to a running service, and write lines of JSON."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.cli.console import print_error, stderr
from service.client import AsyncClient, DetectError, DetectionResult

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


def detect_remotely(
    url: str, paths: Iterable[Path], out_path: Path | None, at_once: int, api_key: str | None, **options: Any
) -> bool:
    """Detect in each image and write its line, to ``out_path`` or the standard output; return whether all succeeded.

    Images that ``out_path`` has a line for are left out, so that a second run continues an interrupted one. Images that
    failed have no line, and are tried again.
    """
    done = finished_files(out_path) if out_path is not None and out_path.exists() else set()
    images = [path for path in find_images(paths) if str(path) not in done]
    if done:
        stderr.print(f"{out_path} has {len(done)} already; {len(images)} to go", highlight=False, soft_wrap=True)
    with nullcontext(sys.stdout.buffer) if out_path is None else out_path.open("ab") as lines:
        return asyncio.run(_detect_all(url, images, lines, at_once, api_key, options))


def find_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield each path that is a file, and the image files in and below each folder, by suffix and in order."""
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        else:
            yield path


def finished_files(out_path: Path) -> set[str]:
    """Return the files that ``out_path`` has a line for, after removing a last line that was cut off.

    Raises ``ValueError`` where it holds anything but lines that ``detect_remotely`` wrote.
    """
    content = out_path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        with out_path.open("r+b") as file:
            file.truncate(len(complete))
    try:
        return {orjson.loads(line)["file"] for line in complete.splitlines()}
    except (orjson.JSONDecodeError, LookupError, TypeError):
        raise ValueError(
            f"{out_path} holds something else than the output of this command; choose another --out"
        ) from None


def json_line(path: Path, result: DetectionResult) -> bytes:
    """Return one line of JSON with the keys of ``frcnn detect --json``."""
    document = {
        "file": str(path),
        "image": {"width": result.width, "height": result.height},
        "boxes": result.boxes,
        "scores": result.scores,
        "labels": result.labels,
        "class_ids": result.class_ids,
    }
    return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)


async def _detect_all(
    url: str, paths: list[Path], lines: BinaryIO, at_once: int, api_key: str | None, options: dict[str, Any]
) -> bool:
    succeeded = True
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # A long timeout: an image may wait for the others of its folder.
    async with AsyncClient(url, api_key=api_key, timeout=120.0, tries=100) as client:
        with Progress(*columns, console=stderr, disable=not stderr.is_terminal) as bar:
            task = bar.add_task("detecting", total=len(paths))
            async for path, outcome in client.detect_many(paths, at_once=at_once, **options):
                if isinstance(outcome, DetectionResult):
                    lines.write(json_line(path, outcome))
                    lines.flush()  # so that an interruption does not lose it
                else:
                    succeeded = False
                    print_error(f"{path}: {outcome}")
                    _raise_if_permanent(outcome)
                bar.advance(task)
    return succeeded


def _raise_if_permanent(outcome: DetectError | OSError) -> None:
    """Raise ``outcome`` where all other images would fail likewise: a wrong key, or an unreachable service."""
    if isinstance(outcome, DetectError) and outcome.status in (None, 401, 404):
        raise outcome
