"""Where a benchmark ran, and where its figures go.

    python -m benchmarks.report

writes the tables of docs/performance.md anew from the JSON files in benchmarks/results/. Each benchmark does so at its
end; a module with a ``tables`` function is all that a new one needs, and a hole of its name in the page.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGE = ROOT / "docs/performance.md"
# Those with a place in the page.
PAGES = ("engine", "shapes", "profile", "int8", "serve", "startup", "memory", "decode", "gpu")
_HOLE = r"(<!-- made: {} -->\n).*?(<!-- end -->)"
_PACKAGES = ("torch", "torchvision", "pillow", "numpy", "uvicorn", "fastapi")


@dataclass(frozen=True)
class Table:
    """Rows of text below a head; numbers are formatted by who makes it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """For the page, with the title as a line above."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        body = "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
        return f"\n{self.title}\n\n{body}\n"

    def print(self) -> None:
        """For the terminal."""
        from rich.console import Console  # not at the top: benchmarks.gpu runs without it
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, title_justify="left")
        for number, name in enumerate(self.head):
            table.add_column(name, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        Console(width=150 if not Console().is_terminal else None).print(table)


def stop(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and a minute to drain; then SIGKILL."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def environment(device: str, *packages: str) -> dict[str, Any]:
    """What the figures depend on: processor, cores, threads, versions, commit, and how busy the machine was before."""
    import torch

    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version()} | {p: v for p in (*_PACKAGES, *packages) if (v := _found(p))},
    }


def processor() -> str:
    """Its name, and which matrix instructions it has."""
    name, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            name = found[1].strip()
        if found := re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE):
            flags = set(found[1].split())
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return f"{name} ({', '.join(flag for flag in wanted if flag in flags) or 'no wide vectors known'})"


def vectors(machine: Mapping[str, Any]) -> str:
    """The widest of the processor's matrix instructions: what most decides a ratio. Of an ``environment``."""
    return str(machine["processor"]).rpartition("(")[2].rstrip(")").rpartition(", ")[2]


def commit() -> str:
    """The commit, with a + where the code differs from it; empty outside a repository."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "model", "service", "benchmarks/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of what was measured, and how often."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": len(values)}


def milliseconds(found: Mapping[str, float]) -> str:
    """A spread in seconds as "median (low to high)", in milliseconds."""
    digits = 0 if found["median"] >= 1 else 1
    return " ".join(
        (
            f"{found['median'] * 1000:,.{digits}f}",
            f"({found['low'] * 1000:,.{digits}f} to {found['high'] * 1000:,.{digits}f})",
        )
    )


def where(machine: Mapping[str, Any]) -> str:
    """One line for below a table."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['versions']['torch']} "
        f"with {machine['torch_threads']} threads, {machine['device']}, commit {machine['commit']}, "
        f"{machine['date'][:10]}, load before {machine['load_before']}"
    )


def load(name: str) -> dict[str, Any]:
    """The results of that name, or an empty dict. Of gpu there are several files, by card and date, and all are it."""
    if name == "gpu":
        return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("gpu-*.json"))}
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def save(name: str, result: Mapping[str, Any]) -> None:
    """Write results/NAME.json, and with it the page."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    write_page()


def write_page() -> None:
    """Fill the holes of the page from what results there are."""
    if PAGE.exists():
        PAGE.write_text(filled(PAGE.read_text()))


def filled(page: str) -> str:
    """The page with its tables as the results say."""
    for name in PAGES:
        result = load(name)
        tables: list[Table] = importlib.import_module(f"benchmarks.{name}").tables(result) if result else []
        text = "".join(table.markdown() for table in tables) or "\nNot measured yet.\n\n"
        page = re.sub(_HOLE.format(name), lambda m, text=text: m[1] + text + m[2], page, flags=re.DOTALL)
    return page


def _found(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    write_page()
