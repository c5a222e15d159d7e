"""Exit codes of the ``frcnn`` command, for supervisors: docs/operations.md has the table."""

from __future__ import annotations

import ssl

from service.errors import StartError

DONE = 0  # also after a drain, or an interrupt during the start
NOT_STARTED = 1  # a restart may help; also where accepted requests were dropped
MISCONFIGURED = 2  # a restart cannot help; also typer's code for wrong options
DETECTOR_FAILED = 3  # permanently, while the service was running

# Errors of a file that a setting names.
_FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ssl.SSLError)


def code_for(error: BaseException) -> int:
    """Return the exit code of a process that ``error`` kept from starting.

    A ``ValueError`` is about the settings, the device or the weights: all such errors of the project derive from it.
    """
    return MISCONFIGURED if isinstance(error, (ValueError, *_FILE_ERRORS)) else NOT_STARTED


def is_plain(error: BaseException) -> bool:
    """Return whether the text of ``error`` tells an operator enough, so that no traceback is needed."""
    return isinstance(error, (StartError, ValueError, OSError))
