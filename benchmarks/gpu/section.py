"""A section of the run: points that are measured one after another; one that fails does not stop the next."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.settings import Settings
from benchmarks.lib.results import write_json

Data = dict[str, Any]
OUT_OF_TIME = "not measured: out of time"
LOST = 75  # exit code of a section's process whose GPU no longer answers


class Skipped(Exception):
    """Raised with the reason where a point cannot be measured here, which is no failure."""


@dataclass(frozen=True)
class Point:
    """One thing to measure. ``run`` gets the seconds that it should take, and returns its figures.

    weight: its part of the section's time, relative to the other points'.
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
    """Return the record of an error: the last lines of its traceback."""
    lines = "".join(traceback.format_exception(error)).strip().splitlines()
    return {"status": "failed", "error": "\n".join(line[:300] for line in lines[-6:])}


def attempt(run: Callable[[], Data]) -> Data:
    """Return what ``run`` returns, with its status and its seconds; an error becomes a record."""
    begin = time.perf_counter()
    try:
        figures = {"status": "measured"} | run()
    except Skipped as reason:
        figures = {"status": "skipped", "why": str(reason)}
    except Exception as error:
        figures = failure(error)
    return figures | {"took_s": round(time.perf_counter() - begin, 3)}


def failures(result: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every failure within a result: where it is, and the last line of its error."""
    if isinstance(result, Mapping):
        if result.get("status") == "failed":
            yield path, str(result.get("error", "")).strip().rpartition("\n")[2]
        for key, value in result.items():
            yield from failures(value, f"{path}/{key}" if path else str(key))
    elif isinstance(result, list):
        for number, value in enumerate(result):
            name = value.get("name", number) if isinstance(value, Mapping) else number
            yield from failures(value, f"{path}/{name}")


def work(section: Section, settings: Settings, path: Path, done: Data, deadline: float) -> int:
    """Measure the points that ``done`` lacks, and write ``path`` before and after each; returns 0, or ``LOST``.

    deadline: of ``time.monotonic``; no point begins after it.
    """
    if settings.tiny:  # these times count for nothing, and threads that wait for each other are slow on shared cores
        torch.set_num_threads(1)
    waiting = [point for point in section.points(settings) if point.name not in done]
    for number, point in enumerate(waiting):
        left = deadline - time.monotonic()
        if left <= 0:
            done[point.name] = {"status": OUT_OF_TIME}
            continue
        write_json(path, {"running": point.name, "points": done})
        print(f"{section.name}: {point.name}", flush=True)
        share = left * point.weight / sum(other.weight for other in waiting[number:])
        done[point.name] = attempt(lambda point=point, share=share: point.run(share))  # type: ignore[misc]
        write_json(path, {"running": None, "points": done})
        if settings.cuda and any(True for _ in failures(done[point.name])):
            gc.collect()
            if not _gpu_answers():
                return LOST
    write_json(path, {"running": None, "points": done})
    return 0


def _gpu_answers() -> bool:
    """Return whether the GPU still computes: after an illegal access no call of this process succeeds."""
    try:
        torch.cuda.empty_cache()
        return bool(torch.ones(2, device="cuda").sum().item() == 2)
    except Exception:
        return False
