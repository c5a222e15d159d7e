"""One minute of `benchmarks/serving/soak.py`, which sends everything at once, with the same checks."""

import pytest

from benchmarks.serving.soak import soak


@pytest.mark.slow
def test_a_minute_of_faults_broken_files_and_disconnections_loses_no_request() -> None:
    # Random weights are enough: the service is tested. The heap still grows in the first minute, so its limit is wide;
    # half an hour with a narrow limit is in benchmarks/results/soak.json.
    result = soak(seconds=60, weights="random", pace=3, growth=0.5)
    assert result["wrong"] == {}
    assert result["lost"] == 0
    assert result["sent"] >= 40
    assert result["answered"].get("200", 0) > 0
    assert result["answered"].get("400", 0) > 0  # broken files
    assert result["hung_up"] > 0
    assert sum(result["faults"].values()) >= 3
    assert result["logged"].get("500", 0) >= 1  # the one poisoned image
