"""Memory that is free goes back to the machine, even what lies in gaps between blocks that are in use."""

import subprocess
import sys
import threading

import pytest

from service.inference import pipeline
from tests.service.conftest import FaultyDetector, serving

# A process of its own: what is asked of the heap lasts as long as the process.
_GAPS = """
import resource
import numpy as np
from model.runtime.malloc import keep_freed_memory
from service.inference.heap import release_free_memory, share_one_heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

kept = share_one_heap() and keep_freed_memory()
before = resident()
blocks = [np.ones(50_000) for _ in range(800)]  # 305 MiB
full = resident()
del blocks[::2]
freed = resident()
gave = release_free_memory()
print(int(kept), int(gave), full - before, full - freed, full - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap alone has gaps to give back")
def test_gaps_between_blocks_in_use_are_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", _GAPS], capture_output=True, text=True, check=True)
    kept, gave, grew, freed_by_itself, freed = map(int, run.stdout.split())
    assert (kept, gave) == (1, 1)
    assert grew > 290
    assert freed_by_itself < 30, "the detector's heap keeps what is freed"
    assert freed > 130


def test_a_service_gives_memory_back_for_as_long_as_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    times, enough = [], threading.Event()

    def give_back() -> bool:
        times.append(threading.current_thread().name)
        if len(times) >= 3:
            enough.set()
        return True

    monkeypatch.setattr(pipeline, "TRIM_SECONDS", 0.01)
    monkeypatch.setattr(pipeline, "release_free_memory", give_back)
    with serving(lambda _: FaultyDetector()):
        assert enough.wait(20)
    done = len(times)
    threading.Event().wait(0.1)
    assert len(times) == done
