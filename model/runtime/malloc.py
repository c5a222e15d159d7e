"""The memory settings of a process that runs a detector: what it keeps, and when it gives memory back.

They concern the whole process, so that no constructor makes them: whoever owns the process (a server, a command, a
benchmark) calls ``configure_malloc`` before its first image.

glibc's defaults suit a detector badly in two ways. It gives large blocks back to the kernel as soon as they are freed,
so that every large map of every forward pass is mapped anew, and each of its pages faults again. And it gives each
thread an arena of its own, so that memory which a decoding thread has freed is of no use to the detector's thread, and
the process grows until the largest images have been through every thread. Blocks that are kept have a price: blocks of
ever other sizes leave gaps that nothing fits into, and the process still grows. ``release_free_memory``, called seldom,
gives all free pages back: the next batch faults once, not each.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_INT_MAX = 2**31 - 1  # mallopt takes an int
# More than a detector of a hundred layers needs on nine canvases with batches of up to eight images.
PRIMITIVES = 8192
RELEASE_SECONDS = 30.0  # between two releases in a server: seldom enough that the page faults after them do not count


def configure_malloc() -> bool:
    """Let all threads share one arena, keep freed blocks, and let oneDNN keep its kernels; return whether glibc did.

    Call it before the first image, and before threads start: those that run keep their arenas. In return for its speed
    the process keeps its peak memory until ``release_free_memory``. Elsewhere than on glibc only oneDNN is configured.
    """
    _enlarge_primitive_cache()
    mallopt = _libc_function("mallopt")
    if mallopt is None:
        return False
    one_arena = bool(mallopt(_M_ARENA_MAX, 1))
    keeps_blocks = bool(mallopt(_M_MMAP_THRESHOLD, _INT_MAX)) and bool(mallopt(_M_TRIM_THRESHOLD, _INT_MAX))
    return one_arena and keeps_blocks


def release_free_memory() -> bool:
    """Give every free page of the heap back to the kernel; return whether there were any.

    Meanwhile no thread can allocate or free memory, but Python's lock is not held. Elsewhere than on glibc it does
    nothing.
    """
    malloc_trim = _libc_function("malloc_trim")
    return malloc_trim is not None and bool(malloc_trim(ctypes.c_size_t(0)))


def _enlarge_primitive_cache() -> None:
    """Let oneDNN keep more of the kernels that it compiles, one for each layer, canvas and batch size.

    By default it keeps 1,024. Mixed traffic needs several times as many, so that a kernel would be compiled on nearly
    every call; that costs time, and memory too, since what is thrown away leaves gaps. A kernel takes some 100 KB.
    oneDNN reads the variable once, when it first works. A value that is set already stays.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # the variable's older name
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))


def _libc_function(name: str) -> Any:
    """Return a function of the C library; None where it has none of that name, as musl."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
