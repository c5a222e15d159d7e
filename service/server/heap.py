"""One heap for all threads of the process, and what lies free in it given back to the kernel now and then.

glibc gives each thread a heap of its own, so a picture that a decoding thread has freed is of no use to the detector's
thread, and the process grows for as long as the largest pictures have not been through every thread.

One heap is not enough. The detector keeps freed blocks (``model/runtime/malloc.py``), for a forward pass that faults
every page anew is a slow one; and blocks of ever other sizes leave gaps between them that nothing fits into again, so
that the process still grows. Once in a while all free pages are given back: the next batches fault once, not each.
"""

from __future__ import annotations

import ctypes
import sys

_M_ARENA_MAX = -8  # glibc's malloc.h
TIDY_SECONDS = 30.0  # between two givings back: seldom enough that the faults which follow do not count


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


def give_back_free_memory() -> bool:
    """Return every free page of the heap to the kernel; True if any went.

    Meanwhile no thread can allocate or free; ctypes lets go of Python's lock.
    Elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(trim(ctypes.c_size_t(0)))
