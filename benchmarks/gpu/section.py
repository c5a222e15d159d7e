"""A section of the run: points that are measured in turn, each on its own feet."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.settings import Settings

Data = dict[str, Any]
OUT_OF_TIME = "not measured: out of time"
LOST = 75  # exit code of a section's process whose GPU answers no more


class Skipped(Exception):
    """Raise it where a point cannot be measured here; the text says why. It is no failure."""


@dataclass(frozen=True)
class Point:
    """One thing to measure. ``run`` takes the seconds it should take, and returns what it found.

    weight: how much of the section's time it should have, against the others.
    """

    name: str
    run: Callable[[float], Data]
    weight: float = 1.0


@dataclass(frozen=True)
class Section:
    """share: of the time that is left when the section begins. seconds: instead of it, outside the limit."""

    name: str
    points: Callable[[Settings], list[Point]]
    share: float = 1.0
    seconds: float | None = None


def failure(error: BaseException) -> Data:
    """The record of an error: the last lines of its traceback."""
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return {"status": "failed", "error": "\n".join(line[:300] for line in lines[-6:])}


def attempt(run: Callable[[], Data]) -> Data:
    """What ``run`` returns, with its status and its seconds; an error becomes a record of it."""
    begun = time.perf_counter()
    try:
        found = {"status": "measured"} | run()
    except Skipped as reason:
        found = {"status": "skipped", "why": str(reason)}
    except Exception as error:
        found = failure(error)
    return found | {"took_s": round(time.perf_counter() - begun, 3)}


def failures(found: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every failure within a result: where it is, and the last line of what was said."""
    if isinstance(found, Mapping):
        if found.get("status") == "failed":
            yield path, str(found.get("error", "")).strip().rpartition("\n")[2]
        for key, value in found.items():
            yield from failures(value, f"{path}/{key}" if path else str(key))
    elif isinstance(found, list):
        for number, value in enumerate(found):
            name = value.get("name", number) if isinstance(value, Mapping) else number
            yield from failures(value, f"{path}/{name}")


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(found, indent=1) + "\n")
    unfinished.replace(path)


def work(section: Section, settings: Settings, path: Path, done: Data, deadline: float) -> int:
    """Measure the points that ``done`` lacks, and write ``path`` before and after each; 0, or ``LOST``.

    deadline: of ``time.monotonic``; no point is begun after it.
    """
    if settings.tiny:  # no figures to go by; and threads that wait for each other are slow where cores are shared
        torch.set_num_threads(1)
    waiting = [point for point in section.points(settings) if point.name not in done]
    for number, point in enumerate(waiting):
        left = deadline - time.monotonic()
        if left <= 0:
            done[point.name] = {"status": OUT_OF_TIME}
            continue
        write(path, {"running": point.name, "points": done})
        print(f"{section.name}: {point.name}", flush=True)
        share = left * point.weight / sum(other.weight for other in waiting[number:])
        done[point.name] = attempt(lambda point=point, share=share: point.run(share))  # type: ignore[misc]
        write(path, {"running": None, "points": done})
        if settings.cuda and any(True for _ in failures(done[point.name])):
            gc.collect()
            if not _answers():
                return LOST
    write(path, {"running": None, "points": done})
    return 0


def _answers() -> bool:
    """Whether the GPU still computes: after an illegal access no call of this process succeeds."""
    try:
        torch.cuda.empty_cache()
        return bool(torch.ones(2, device="cuda").sum().item() == 2)
    except Exception:
        return False
