"""Run the command as ``python -m service.cli``, where the ``frcnn`` script is not installed."""

from service.cli.main import app

app()
