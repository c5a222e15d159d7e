"""Choose the numbers of threads and processes, so that they do not compete for the cores.

Three kinds compute: torch's thread pool, which the detector's thread leads; the processes that decode images; and the
event loop. torch divides each layer evenly and waits for its slowest thread, so that a core which another
thread uses for a moment delays the whole layer: hence its pool has no more threads than there are cores. A JPEG of
640 x 480 takes a millisecond to decode where its inference takes tens on a CPU, so that a quarter as many processes
keep up; but never fewer than two, because one large image must not delay all small ones. With a GPU the cores are free
for decoding, but for one, the event loop's. `python -m benchmarks.serving.threads` measures it.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Return the cores that this process may use: those it is bound to, at most its container's quota, at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return bound if quota is None else max(1, min(bound, quota))


def image_process_count(cores: int, device: str) -> int:
    """Return how many processes decode and draw, where the detector runs on ``device`` and there are ``cores``."""
    return max(2, cores - 1 if device.startswith("cuda") else cores // 4)


def _quota(cgroup: Path) -> int | None:
    """Return the whole cores of CPU time that the container has (``docker run --cpus``), or None where it has no limit.

    Rounded down: the kernel pauses all threads of a process that exceeds its quota.
    """
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()  # cgroup v2: microseconds, or `max`
        return None if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()  # cgroup v1: -1 for no limit
        period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        return None if int(quota) < 0 else int(quota) // int(period)
    except (OSError, ValueError):
        return None
