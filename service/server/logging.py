"""How log lines look: one JSON object each, or text for people. Never picture data, never a key."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import orjson

_USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "message", ...extra}``"""

    def format(self, record: logging.LogRecord) -> str:
        """One record on one line."""
        entry: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


class TextLines(logging.Formatter):
    """``2026-01-31T12:00:00.123Z info frcnn.access request status=200 ms=12.3``"""

    def format(self, record: logging.LogRecord) -> str:
        """One record, its exception on the lines below."""
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        line = f"{_timestamp(record)} {record.levelname.lower()} {record.name} {record.getMessage()}{extra}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(form: str, level: str) -> None:
    """Send every logger of the process to stderr, in ``form``, json or text; for the command line only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _USUAL and name[0] != "_"}


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
