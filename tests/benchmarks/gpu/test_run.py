"""No point, section or process can stop the others."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.gpu import tables
from benchmarks.gpu.run import Run, forked
from benchmarks.gpu.section import LOST, OUT_OF_TIME, Data, Point, Section, Skipped
from benchmarks.gpu.settings import Settings

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run_of(tmp_path: Path, *sections: Section, limit: float = 60.0) -> tuple[Run, Data]:
    run = Run(Settings(device="cpu", out=tmp_path, limit=limit), sections)
    return run, run.all()


def section(name: str, *points: Point, share: float = 0.5) -> Section:
    return Section(name, lambda _: list(points), share=share)


def broken(_: float) -> Data:
    raise RuntimeError("no such kernel")


def good(_: float) -> Data:
    return {"value": 1.5}


def dying(_: float) -> Data:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def skipped(_: float) -> Data:
    raise Skipped("there is none")


@forks
def test_a_point_that_raises_or_dies_is_recorded_and_the_rest_runs(tmp_path: Path) -> None:
    first = section("a", Point("broken", broken), Point("dying", dying), Point("skipped", skipped), Point("good", good))
    run, outcome = run_of(tmp_path, first, section("b", Point("good", good)))
    points = outcome["sections"]["a"]["points"]
    assert list(points) == ["broken", "dying", "skipped", "good"]
    assert points["broken"]["error"].endswith("RuntimeError: no such kernel")
    assert "SIGKILL" in points["dying"]["error"]
    assert points["skipped"]["why"] == "there is none"
    assert points["good"]["value"] == outcome["sections"]["b"]["points"]["good"]["value"] == 1.5
    assert [failure["where"] for failure in outcome["failures"]] == ["a/points/broken", "a/points/dying"]
    assert json.loads(run.path.read_text()) == outcome
    [table] = tables({"gpu-x": outcome | {"sections": {"other": outcome["sections"]["a"]}}})
    assert ("other", "broken", "FAILED: RuntimeError: no such kernel", "") in list(table.rows)


@forks
def test_a_section_that_cannot_say_its_points_is_a_failure(tmp_path: Path) -> None:
    def none(_: Settings) -> list[Point]:
        raise ImportError("no module")

    _, outcome = run_of(tmp_path, Section("a", none), section("b", Point("good", good)))
    assert outcome["sections"]["a"]["points"]["points"]["error"].endswith("ImportError: no module")
    assert outcome["sections"]["b"]["points"]["good"]["status"] == "measured"


@forks
def test_a_gpu_that_is_lost_is_lost_to_one_point_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.section._gpu_answers", lambda: False)

    def whose(_: float) -> Data:
        return {"process": os.getpid()}

    points = section("a", Point("first", whose), Point("broken", broken), Point("next", whose))
    measured = Run(Settings(device="cuda", out=tmp_path, limit=60), [points]).all()["sections"]["a"]["points"]
    assert measured["broken"]["error"].endswith("RuntimeError: no such kernel")
    assert measured["next"]["process"] != measured["first"]["process"]


@forks
def test_the_limit_is_kept_by_a_point_that_hangs(tmp_path: Path) -> None:
    def hanging(_: float) -> Data:
        time.sleep(600)
        return {}

    begin = time.monotonic()
    hung = section("a", Point("good", good), Point("hanging", hanging), Point("late", good))
    _, outcome = run_of(tmp_path, hung, section("b", Point("good", good), share=1.0), limit=4.0)
    assert time.monotonic() - begin < 60
    points = outcome["sections"]["a"]["points"]
    assert points["good"]["status"] == "measured"
    assert "was stopped" in points["hanging"]["error"]
    assert points["late"]["status"] == OUT_OF_TIME
    assert outcome["sections"]["b"]["points"]["good"]["status"] == "measured"


@forks
def test_a_section_without_time_measures_nothing(tmp_path: Path) -> None:
    _, outcome = run_of(tmp_path, section("a", Point("good", good), share=0.0))
    assert outcome["sections"]["a"]["points"] == {"good": {"status": OUT_OF_TIME}}
    assert outcome["failures"] == []


@forks
def test_how_a_process_ended_is_told() -> None:
    assert forked(lambda: 0, 30) == ""
    assert forked(lambda: LOST, 30) == "lost the GPU"
    assert forked(lambda: 3, 30) == "ended with 3"
