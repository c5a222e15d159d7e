"""Load a server with wrk, through post.lua."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib import results
from benchmarks.serving.servers import Broken, Server

SCRIPT = Path(__file__).with_name("post.lua")


def load(url: str, server: Server, clients: int, seconds: float, folder: Path, *, stages: bool) -> dict[str, Any]:
    """Measure one point: ``clients`` connections that post the server's body again and again.

    stages: also read the detector's seconds from each answer's Server-Timing. Raises ``Broken`` where wrk is missing or
    fails.
    """
    if not shutil.which("wrk"):
        raise Broken("there is no wrk; Debian has it")
    body, kind = server.body
    file = folder / "body"
    file.write_bytes(body)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "600s"]
    command += ["-s", str(SCRIPT), url, "--", str(file), kind, *(["stages"] if stages else [])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse(run.stdout + run.stderr)


def parse(output: str) -> dict[str, Any]:
    """Return what post.lua prints at its end: requests a second, seconds at percentiles, errors, engine seconds."""
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise Broken(f"wrk failed: {output.strip()[-200:]}")
    counts = json.loads(lines[-1].removeprefix("RESULT "))
    errors = {name: counts[name] for name in ("connect", "read", "write", "status", "timeout") if counts[name]}
    answered = counts["requests"] - counts["status"]
    return {
        "requests_per_s": answered / counts["seconds"],
        "requests": answered,
        "errors": errors,
        **{name: counts[name] for name in ("p50", "p95", "p99")},
        "engine": counts["engine"],
    }


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of one point's rounds, and the spread of the rate."""
    errors: dict[str, int] = {}
    for run in runs:
        for kind, count in run["errors"].items():
            errors[kind] = errors.get(kind, 0) + count
    engine = [run["engine"] for run in runs if run["engine"] is not None]
    return {
        "requests_per_s": results.spread([run["requests_per_s"] for run in runs]),
        "requests": sum(run["requests"] for run in runs),
        **{name: statistics.median(run[name] for run in runs) for name in ("p50", "p95", "p99")},
        "errors": errors,
        "engine": statistics.median(engine) if engine else None,
        "overhead": statistics.median(run["p50"] - run["engine"] for run in runs if run["engine"]) if engine else None,
    }


def format_rate(spread: dict[str, float]) -> str:
    """Format requests a second as "median (low to high)"."""
    digits = 2 if spread["median"] < 10 else 1
    return f"{spread['median']:.{digits}f} ({spread['low']:.{digits}f} to {spread['high']:.{digits}f})"
