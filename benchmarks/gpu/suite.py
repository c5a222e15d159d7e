"""The tests marked gpu, by pytest in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import Any

from benchmarks import report
from benchmarks.gpu.section import Point, Section, Skipped
from benchmarks.gpu.settings import Settings

_FOLDER = report.ROOT / "tests/gpu"
_KINDS = ("passed", "failed", "errors?", "skipped", "deselected", "xfailed", "xpassed")


def counts(said: str) -> dict[str, int]:
    """How many tests did what, by pytest's last line."""
    lines = [line for line in said.splitlines() if re.search(r"\bin [\d.]+s", line)]
    last = lines[-1] if lines else ""
    found = {}
    for kind in _KINDS:
        if match := re.search(rf"(\d+) ({kind})\b", last):
            found[match[2].rstrip("s") if match[2].startswith("error") else match[2]] = int(match[1])
    return found


def output(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit code (None: it ran out of time and was stopped) and what the command printed."""
    process = subprocess.Popen(
        command, cwd=report.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return None, said
    return process.returncode, said


def run(seconds: float) -> dict[str, Any]:
    """Run them. Failures are named, with the end of what pytest said."""
    if not (_FOLDER / "alone.ini").is_file():
        raise Skipped("there is no tests/gpu")
    command = [sys.executable, "-m", "pytest", "-c", "tests/gpu/alone.ini", "-m", "gpu", "tests/gpu"]
    code, said = output([*command, "-q", "-rfEs", "--tb=short", "-p", "no:cacheprovider"], max(seconds, 1.0))
    found: dict[str, Any] = {"counts": counts(said), "exit_code": code}
    found["failed_tests"] = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    found["skipped_because"] = re.findall(r"^SKIPPED (.+)$", said, re.MULTILINE)[:10]
    if code == 5:
        raise Skipped("no test is marked gpu")
    if code != 0:
        end = "out of time" if code is None else f"pytest ended with {code}"
        found |= {"status": "failed", "said": said[-6000:], "error": f"{end}: {counts(said)}"}
    return found


def points(settings: Settings) -> list[Point]:
    return [Point("tests marked gpu", run)]


SECTION = Section("tests", points, share=0.2)
