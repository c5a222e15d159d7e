"""Keep what will be needed again: freed memory, and the code that oneDNN makes for each shape."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MOST = 2**31 - 1  # mallopt takes an int
# All that a detector of a hundred layers, nine canvases and batches of up to eight pictures needs, and more.
PRIMITIVES = 8192


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks instead of giving them back to the kernel; True if it will.

    By default every large map is mapped anew, and every page of it faults again, on each forward pass. In return the
    process keeps its peak memory.
    Call it once, before the first picture; for the whole process. Elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MOST)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST))


def keep_primitives() -> None:
    """Let oneDNN keep more of the code that it makes, for each layer, canvas and size of batch.

    By default it keeps 1,024 pieces, of which mixed traffic needs several times as many: then it makes code on nearly
    every call, which costs time, and memory too, for what it throws away leaves gaps (docs/engine.md). A piece is some
    100 KB. oneDNN reads this once, before it first works: call this before the first picture. What the environment says
    already stays.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # its other name
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))
