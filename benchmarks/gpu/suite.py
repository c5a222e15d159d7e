"""Run the tests marked gpu, by pytest in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import Any

from benchmarks.gpu.section import Point, Section, Skipped
from benchmarks.gpu.settings import Settings
from benchmarks.lib import results

_FOLDER = results.ROOT / "tests/gpu"
_KINDS = ("passed", "failed", "errors?", "skipped", "deselected", "xfailed", "xpassed")


def counts(text: str) -> dict[str, int]:
    """Return how many tests had which outcome, by the last line of pytest's output."""
    lines = [line for line in text.splitlines() if re.search(r"\bin [\d.]+s", line)]
    last = lines[-1] if lines else ""
    numbers = {}
    for kind in _KINDS:
        if match := re.search(rf"(\d+) ({kind})\b", last):
            numbers[match[2].rstrip("s") if match[2].startswith("error") else match[2]] = int(match[1])
    return numbers


def output(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Run a command; return its exit code (None: it ran out of time and was stopped) and what it printed."""
    process = subprocess.Popen(
        command, cwd=results.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, _ = process.communicate()
        return None, text
    return process.returncode, text


def run(seconds: float) -> dict[str, Any]:
    """Run them. Failures are named, with the end of pytest's output."""
    if not (_FOLDER / "standalone.ini").is_file():
        raise Skipped("there is no tests/gpu")
    command = [sys.executable, "-m", "pytest", "-c", "tests/gpu/standalone.ini", "-m", "gpu", "tests/gpu"]
    code, text = output([*command, "-q", "-rfEs", "--tb=short", "-p", "no:cacheprovider"], max(seconds, 1.0))
    outcome: dict[str, Any] = {"counts": counts(text), "exit_code": code}
    outcome["failed_tests"] = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    outcome["skipped_because"] = re.findall(r"^SKIPPED (.+)$", text, re.MULTILINE)[:10]
    if code == 5:
        raise Skipped("no test is marked gpu")
    if code != 0:
        end = "out of time" if code is None else f"pytest ended with {code}"
        outcome |= {"status": "failed", "said": text[-6000:], "error": f"{end}: {counts(text)}"}
    return outcome


def points(settings: Settings) -> list[Point]:
    return [Point("tests marked gpu", run)]


SECTION = Section("tests", points, share=0.2)
