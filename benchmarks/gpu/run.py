"""Run sections in processes of their own, write the file after each, and end in time."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.gpu.section import LOST, OUT_OF_TIME, Data, Section, failure, failures, work
from benchmarks.gpu.settings import Settings
from benchmarks.lib.results import write_json

_RESTARTS = 4  # of a section whose process has died
_POLL = 0.05


class Run:
    """One run, and the file that it writes."""

    def __init__(self, settings: Settings, sections: Sequence[Section]) -> None:
        self.settings = settings
        self.sections = sections
        self.begin = time.monotonic()
        # A section's process may be this late before it is ended, and the run shall still be over in time.
        self.grace = min(20.0, 0.05 * settings.limit)
        self.result: Data = {
            "command": "python -m benchmarks.gpu",
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "revision": settings.revision,
            "device": settings.device,
            "limit_s": settings.limit,
            "tiny": settings.tiny,
            "sections": {},
            "failures": [],
        }

    @property
    def path(self) -> Path:
        """The path of the file: gpu-CARD-DATE.json."""
        points = self.result["sections"].get("facts", {}).get("points", {})
        card = str(points.get("machine", {}).get("card") or self.settings.device.split(":")[0])
        slug = "-".join("".join(c if c.isalnum() else " " for c in card.lower()).split())
        return self.settings.out / f"gpu-{slug}-{self.result['date'][:10]}.json"

    def all(self) -> Data:
        """Run every section, and return the result."""
        with tempfile.TemporaryDirectory() as folder:
            for section in self.sections:
                left = self.settings.limit - self.grace - (time.monotonic() - self.begin)
                seconds = max(0.0, left * section.share) if section.seconds is None else section.seconds
                begin = time.monotonic()
                points = self._section(section, seconds, Path(folder) / f"{section.name}.json")
                self.result["sections"][section.name] = {
                    "share_s": round(seconds, 1),
                    "took_s": round(time.monotonic() - begin, 1),
                    "points": points,
                }
                self._save()
        return self.result

    def _save(self) -> None:
        self.result["took_s"] = round(time.monotonic() - self.begin, 1)
        self.result["failures"] = [
            {"where": where, "error": error} for where, error in failures(self.result["sections"])
        ]
        write_json(self.path, self.result)

    def _section(self, section: Section, seconds: float, path: Path) -> Data:
        """Return the section's points; those that its process did not reach are marked as not measured."""
        deadline, done = time.monotonic() + seconds, {}
        try:
            names = [point.name for point in section.points(self.settings)]
        except Exception as error:
            return {"points": failure(error)}
        for _ in range(1 + _RESTARTS):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            ended = forked(lambda done=done: work(section, self.settings, path, done, deadline), left + self.grace)
            state = json.loads(path.read_text()) if path.exists() else {"running": None, "points": {}}
            done = state["points"]
            if state["running"] is not None:
                done[state["running"]] = {"status": "failed", "error": f"Its process {ended or 'ended'}."}
            if all(name in done for name in names) or (not ended and state["running"] is None):
                break
        for name in names:
            done.setdefault(name, {"status": OUT_OF_TIME})
        return {name: done[name] for name in names}


def forked(task: Callable[[], int], seconds: float) -> str:
    """Run ``task`` in a forked process, for so many seconds at most; returns "", or how it ended instead.

    Forked, since importing torch anew takes seconds; so this process must not touch the GPU.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child starts its own threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            code = task()
            sys.stdout.flush()
        except BaseException as error:
            print(failure(error)["error"], file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return _outcome(os.waitstatus_to_exitcode(status))
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL)
    _kill(child)
    os.waitpid(child, 0)
    return "did not end in its time, and was stopped"


def _kill(child: int) -> None:
    """Kill the process and those that it has started."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # its process group does not exist yet
        os.kill(child, signal.SIGKILL)


def _outcome(code: int) -> str:
    """Return how a process ended, or "" where it ended well."""
    if code == LOST:
        return "lost the GPU"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"ended with {code}" if code else ""
