"""Memory and processor time of a process and all its descendants. Linux only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from benchmarks.lib.service import descendants


def memory_mib(leader: int) -> float:
    """Return the proportional set size of the processes in MiB: a page that several share is counted once."""
    kib = 0
    for pid in (leader, *descendants(leader)):
        with contextlib.suppress(OSError, StopIteration):  # it has just ended
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return kib / 1024


def processor_seconds(leader: int) -> float:
    """Return the processor seconds that the processes have used so far, with those of children that have ended."""
    ticks = 0
    for pid in (leader, *descendants(leader)):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # user, system; of children that were waited for: user, system
    return ticks / os.sysconf("SC_CLK_TCK")
