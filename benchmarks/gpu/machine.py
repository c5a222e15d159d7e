"""Describe the machine: the card, its driver, and every version that a figure depends on."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch

from benchmarks.gpu.section import Point, Section
from benchmarks.gpu.settings import Settings
from benchmarks.lib import machine

_PACKAGES = ("torch", "torchvision", "triton", "numpy", "pillow", "safetensors", "pytest", "fastapi", "uvicorn")
_QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory"


def facts(settings: Settings) -> dict[str, Any]:
    """Return the description; without a GPU the card is None."""
    about: dict[str, Any] = {
        "card": None,
        "revision": settings.revision,
        **machine.host(*_PACKAGES),
        "cuda": torch.version.cuda,
        "cudnn": None,
        "nvidia_smi": None,
    }
    if settings.cuda:
        card = torch.cuda.get_device_properties(settings.device)
        about |= {
            "card": card.name,
            "compute_capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "memory_mib": card.total_memory // 2**20,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia_smi": _smi(),
        }
    return about


def _smi() -> dict[str, str] | str:
    """Return what nvidia-smi says of the first card, or a sentence on why it says nothing."""
    if not shutil.which("nvidia-smi"):
        return "There is no nvidia-smi."
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError) as error:
        return f"nvidia-smi failed: {error}"
    values = [value.strip() for value in text.splitlines()[0].split(",")]
    return dict(zip(_QUERY.split(","), values, strict=True))


def points(settings: Settings) -> list[Point]:
    return [Point("machine", lambda _: facts(settings))]


SECTION = Section("facts", points, share=0.2)
