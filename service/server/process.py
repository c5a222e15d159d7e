"""What a server does to its own process: open files, garbage collection, and an end in time whatever else hangs."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger("frcnn.server")

_RESERVED_FILES = 256  # open files for everything that is no connection
_LOG_SECONDS = 1.0  # for the last line, since the thread that holds the log's lock may hang


def raise_file_limit() -> int | None:
    """Raise the soft limit of open files to the hard one; return it, or None where the system has none."""
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


def connection_limit(max_connections: int, file_limit: int | None) -> int:
    """Return the most connections that leave files for the rest of the process; log it where that is fewer."""
    if file_limit is None or max_connections <= file_limit - _RESERVED_FILES:
        return max_connections
    limit = max(16, file_limit - _RESERVED_FILES)
    log.warning("fewer connections than set: the limit of open files is low", extra={"max_connections": limit})
    return limit


def exclude_from_garbage_collection() -> None:
    """Take what is loaded now, torch's modules above all, out of the garbage collector's searches.

    A search of all of it holds the interpreter's lock for a fifth of a second, and a request with some ten thousand
    lists in its options starts one.
    """
    gc.collect()
    gc.freeze()


def end_process(code: int) -> NoReturn:
    """End the process at once, with what was logged and printed written out.

    Python's own end would wait for threads, which may hang, and stop daemon threads inside torch, where C++ aborts the
    process (SIGABRT).
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class ForcedExit:
    """A thread that ends the process at a time, even where the event loop is blocked.

    It is started early, and ``within`` only puts an item in a queue that is reentrant: a signal handler may call it,
    whatever code it has interrupted.
    """

    def __init__(self, code: Callable[[], int], report: Callable[[str], None]) -> None:
        """End the process with ``code()``, after ``report(reason)``, once a time that ``within`` set is over."""
        self._code, self._report = code, report
        self._orders: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="frcnn-forced-exit", daemon=True).start()

    def within(self, seconds: float, reason: str) -> None:
        """End the process in ``seconds`` at the latest."""
        self._orders.put((time.monotonic() + seconds, reason))

    def _run(self) -> None:
        deadline, reason = math.inf, ""
        while (seconds := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                order = self._orders.get(timeout=None if seconds == math.inf else seconds)
                deadline, reason = min((deadline, reason), order)
        report = threading.Thread(target=self._report, args=(reason,), daemon=True)
        report.start()
        report.join(_LOG_SECONDS)
        os._exit(self._code())
