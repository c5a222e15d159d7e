"""Share one heap among all threads of the process, and return its free memory to the kernel now and then.

glibc gives each thread a heap of its own, so an image that a decoding thread has freed is of no use to the detector's
thread, and the process grows until the largest images have been through every thread.

One heap is not enough. The detector keeps freed blocks (``model/runtime/malloc.py``), because a forward pass that
faults in every page again is slow; and blocks of many sizes leave gaps that nothing fits into again, so that the
process still grows. Every ``TRIM_SECONDS`` all free pages are returned: the next batch faults once, not each.
"""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8  # glibc's malloc.h
TRIM_SECONDS = 30.0  # seldom enough that the page faults which follow do not count


def share_one_heap() -> bool:
    """Ask glibc for one heap; return True if it agrees. Call it before other threads start: they alone are concerned.

    Does nothing elsewhere than on glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_M_ARENA_MAX, 1))


def release_free_memory() -> bool:
    """Return every free page of the heap to the kernel; True if there were any.

    Meanwhile no other thread can allocate or free; ctypes releases Python's lock. Does nothing elsewhere than on glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(trim(ctypes.c_size_t(0)))
