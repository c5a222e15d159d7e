"""Describe the machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.lib.results import ROOT

# Of the processor's instructions those that decide how fast matrix products are, from narrow to wide.
_EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_PACKAGES = ("torch", "torchvision", "pillow", "numpy", "uvicorn", "fastapi")


def describe(device: str, *packages: str) -> dict[str, Any]:
    """Return processor, cores, threads, load, versions and commit: what a figure on ``device`` depends on."""
    import torch

    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        **host(*_PACKAGES, *packages),
    }


def host(*packages: str) -> dict[str, Any]:
    """Return what is known of the host without asking for a GPU, and the versions of ``packages``."""
    import torch

    return {
        "processor": processor(),
        "cores": cores(),
        "load_before": load_average(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version()} | {p: v for p in packages if (v := installed_version(p))},
    }


def processor() -> str:
    """Return the processor's name with its matrix instructions in parentheses."""
    name, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            name = match[1].strip()
        if match := re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE):
            flags = set(match[1].split())
    return f"{name} ({', '.join(flag for flag in _EXTENSIONS if flag in flags) or 'no wide vectors known'})"


def widest_vectors(machine: Mapping[str, Any]) -> str:
    """Return the widest matrix instructions of a described machine, such as ``avx512_bf16``."""
    return str(machine["processor"]).rpartition("(")[2].rstrip(")").rpartition(", ")[2]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float:
    """Return the machine's load over the last minute."""
    return round(os.getloadavg()[0], 2)


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Return the commit, with a + where code differs from it; empty outside a repository."""

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "model", "service", "benchmarks/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def sentence(machine: Mapping[str, Any]) -> str:
    """Return a described machine in one line."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['versions']['torch']} "
        f"with {machine['torch_threads']} threads, {machine['device']}, commit {machine['commit']}, "
        f"{machine['date'][:10]}, load before {machine['load_before']}"
    )
