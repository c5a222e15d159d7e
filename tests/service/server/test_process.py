"""The process's limit of open files, and its end at a set time."""

import os
import threading

import pytest

from service.server.process import ForcedExit, connection_limit, raise_file_limit


@pytest.fixture
def exit_codes(monkeypatch):
    """Record the codes of ``os._exit``, which ends nothing here."""
    codes: list[int] = []
    ended = threading.Event()

    def exit_process(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", exit_process)
    yield lambda: ended.wait(10) and codes
    assert ended.wait(10), "a thread is left that would end the tests' process"


def test_the_earliest_time_counts_and_its_reason_is_reported(exit_codes):
    reasons: list[str] = []
    forced = ForcedExit(lambda: 7, reasons.append)
    forced.start()
    forced.within(600, "later")
    forced.within(0.05, "sooner")
    assert exit_codes() == [7]
    assert reasons == ["sooner"]


def test_a_report_that_hangs_does_not_keep_the_process_alive(exit_codes, monkeypatch):
    monkeypatch.setattr("service.server.process._LOG_SECONDS", 0.05)
    released = threading.Event()
    forced = ForcedExit(lambda: 1, lambda _: released.wait(20) and None)
    forced.start()
    forced.within(0, "at once")
    assert exit_codes() == [1]
    released.set()


def test_the_limit_of_open_files_is_raised_as_far_as_is_allowed(monkeypatch):
    import resource

    limits = [(256, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert raise_file_limit() == 4096
    assert limits == [(256, 4096), (4096, 4096)]

    def refuse(*_: object) -> None:
        raise ValueError("not allowed")

    limits.append((256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_file_limit() == 256


def test_connections_leave_files_for_the_rest_of_the_process(caplog):
    assert connection_limit(2048, None) == connection_limit(2048, 2048 + 256) == 2048
    assert not caplog.records
    assert connection_limit(2048, 1024) == 768
    assert "limit of open files" in caplog.text
    assert connection_limit(2048, 100) == 16
