"""How many threads for what, so that they do not fight over the cores.

Three parties compute: torch's team, which the detector's thread leads; the threads that decode pictures; and the event
loop. torch divides each layer evenly and waits for its slowest member, so that a core which is taken from it for a
moment holds up all of it: hence no more threads in its team than there are cores. A JPEG of 640 x 480 takes a
millisecond to decode where a picture takes tens on a CPU's team, so that a quarter as many threads keep up with it; but
never fewer than two, for one large picture must not hold up all small ones. A GPU leaves the cores to the decoding, but
for one, the event loop's. `python -m benchmarks.serving.threads` measures it.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use: those it is bound to, and no more than its container's quota; at least 1."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return bound if quota is None else max(1, min(bound, quota))


def decoding(available: int, device: str) -> int:
    """Threads that decode, where the detector runs on ``device`` beside them on ``available`` cores."""
    return max(2, available - 1 if device.startswith("cuda") else available // 4)


def _quota(cgroup: Path) -> int | None:
    """Whole cores of CPU time that the container is given (``docker run --cpus``), or None where it is not limited.

    Rounded down: a team of more threads than that is stopped in the middle of its work, all members at once.
    """
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()  # cgroup v2: microseconds, or the word max
        return None if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()  # cgroup v1: -1 for no limit
        period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        return None if int(quota) < 0 else int(quota) // int(period)
    except (OSError, ValueError):
        return None
