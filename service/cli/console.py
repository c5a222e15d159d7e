"""Output of the commands: results on the standard output, errors on the standard error."""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

from service.exit_codes import NOT_STARTED

stdout = Console()
stderr = Console(stderr=True)


def print_error(message: object) -> None:
    """Print ``message`` in red on the standard error, unchanged: rich adds neither markup nor line breaks."""
    stderr.print(str(message), style="red", markup=False, highlight=False, soft_wrap=True)


def fail(message: object, code: int = NOT_STARTED) -> NoReturn:
    """Print ``message`` as an error and end the command with exit code ``code``."""
    print_error(message)
    raise typer.Exit(code)
