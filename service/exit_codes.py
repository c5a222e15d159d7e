"""Exit codes of the ``frcnn`` command, for supervisors: docs/operations.md has the table."""

from __future__ import annotations

import ssl

from service.errors import StartError

DONE = 0  # or drained, or interrupted
NOT_STARTED = 1  # a restart may help; also where accepted requests were dropped
MISCONFIGURED = 2  # a restart cannot help; typer's code for wrong options too
DETECTOR_FAILED = 3  # for good, while it served

# Of a file that a setting names.
_FILES = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ssl.SSLError)


def code_for(error: BaseException) -> int:
    """Return the exit code for a start that ``error`` prevented.

    A ``ValueError`` is of the settings, the device or the weights: all of ours that say so derive from it.
    """
    return MISCONFIGURED if isinstance(error, (ValueError, *_FILES)) else NOT_STARTED


def is_plain(error: BaseException) -> bool:
    """Say whether the text of ``error`` tells an operator enough, so that no traceback is needed."""
    return isinstance(error, (StartError, ValueError, OSError))
