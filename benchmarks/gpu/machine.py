"""Facts of the machine: the card, its driver, and every version that a figure depends on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks import report
from benchmarks.gpu.section import Point, Section
from benchmarks.gpu.settings import Settings

_PACKAGES = ("torch", "torchvision", "triton", "numpy", "pillow", "safetensors", "pytest", "fastapi", "uvicorn")
_ASKED = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory"


def facts(settings: Settings) -> dict[str, Any]:
    """What there is; of a CPU the card is None."""
    found: dict[str, Any] = {
        "card": None,
        "processor": report.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "revision": settings.revision,
        "versions": {"python": platform.python_version()} | {p: v for p in _PACKAGES if (v := _version(p))},
        "cuda": torch.version.cuda,
        "cudnn": None,
        "nvidia_smi": None,
    }
    if settings.cuda:
        about = torch.cuda.get_device_properties(settings.device)
        found |= {
            "card": about.name,
            "compute_capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "memory_mib": about.total_memory // 2**20,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia_smi": _smi(),
        }
    return found


def _smi() -> dict[str, str] | str:
    """What nvidia-smi says of the first card; a sentence where it says nothing."""
    if not shutil.which("nvidia-smi"):
        return "There is no nvidia-smi."
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError) as error:
        return f"nvidia-smi failed: {error}"
    values = [value.strip() for value in said.splitlines()[0].split(",")]
    return dict(zip(_ASKED.split(","), values, strict=True))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def points(settings: Settings) -> list[Point]:
    return [Point("machine", lambda _: facts(settings))]


SECTION = Section("facts", points, share=0.2)
