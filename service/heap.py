"""One heap for all threads of the process: what one frees, another takes.

glibc gives each thread a heap of its own, so a picture that a decoding thread has freed is of no use to the detector's
thread, and the process grows for as long as the largest pictures have not been through every thread.
"""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8  # glibc's malloc.h


def share_one_heap() -> bool:
    """Ask glibc for it; True if it will. Only threads that start later are concerned: call it first of all.

    Elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_M_ARENA_MAX, 1))
