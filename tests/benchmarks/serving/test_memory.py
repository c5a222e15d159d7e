from collections import Counter

import pytest

from benchmarks.serving import memory


def test_memory_that_grows_is_seen_and_pools_that_fill_are_not() -> None:
    flat = [(done, 900.0 if done > 300 else 500.0 + done) for done in range(20, 2001, 20)]
    growing = [(done, 900 + done / 10) for done in range(20, 2001, 20)]
    steady = memory.summarise(Counter({200: 2000}), flat, 500, 60)
    leaking = memory.summarise(Counter({200: 2000}), growing, 500, 60)
    assert steady["mib_per_1000_requests"] == 0
    assert steady["last_fifth_mib"] == steady["second_fifth_mib"]
    assert leaking["mib_per_1000_requests"] == pytest.approx(100)
