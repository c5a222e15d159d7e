"""Log lines as JSON and as text."""

import json
import logging
import re

from service.server.logging import JsonFormatter, TextFormatter


def record(**extra: object) -> logging.LogRecord:
    entry = logging.LogRecord("frcnn.access", logging.INFO, "file.py", 1, "request %s", ("one",), None)
    entry.__dict__.update(extra)
    return entry


def test_json_is_one_object_a_line_with_the_extra_fields():
    line = JsonFormatter().format(record(status=200, path=object))
    assert "\n" not in line
    entry = json.loads(line)
    assert entry.keys() == {"time", "level", "logger", "message", "status", "path"}
    assert (entry["level"], entry["logger"], entry["message"], entry["status"]) == (
        "info",
        "frcnn.access",
        "request one",
        200,
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])


def test_text_has_the_same_fields_in_one_line():
    line = TextFormatter().format(record(status=200))
    assert re.fullmatch(r"\S+Z info frcnn\.access request one status=200", line)


def test_an_exception_follows_its_line():
    try:
        raise ValueError("a fault")
    except ValueError as error:
        entry = record(exc_info=(type(error), error, error.__traceback__))
    assert json.loads(JsonFormatter().format(entry))["exception"].endswith("ValueError: a fault")
    first_line, *traceback = TextFormatter().format(entry).splitlines()
    assert first_line.endswith("request one")
    assert traceback[-1] == "ValueError: a fault"
