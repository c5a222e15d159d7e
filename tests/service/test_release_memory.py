"""A service gives free memory back to the kernel at intervals."""

import threading

import pytest

from service.inference import pipeline
from tests.service.conftest import FaultyDetector, serving


def test_a_service_releases_memory_for_as_long_as_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, enough = [], threading.Event()

    def release() -> bool:
        threads.append(threading.current_thread().name)
        if len(threads) >= 3:
            enough.set()
        return True

    monkeypatch.setattr(pipeline, "RELEASE_SECONDS", 0.01)
    monkeypatch.setattr(pipeline, "release_free_memory", release)
    with serving(lambda _: FaultyDetector()):
        assert enough.wait(20)
    count = len(threads)
    threading.Event().wait(0.1)
    assert len(threads) == count
