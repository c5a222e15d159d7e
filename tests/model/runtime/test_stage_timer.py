"""The stage timer: what it measures, and that it waits for a GPU once."""

from types import SimpleNamespace

import pytest
import torch

from model.runtime import stage_timer
from model.runtime.stage_timer import StageTimer

STAGES = ["transform", "backbone", "postprocess"]


class Event:
    """An event of a device that has done nothing until it is waited for."""

    recorded = 0
    waits = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:1"
        Event.recorded += 1
        self.milliseconds = 10.0 * Event.recorded**2

    def synchronize(self) -> None:
        assert self.milliseconds == 10.0 * Event.recorded**2, "only the last event is waited for"
        Event.waits += 1

    def elapsed_time(self, later: "Event") -> float:
        assert Event.waits, "an event that is not done has no time"
        return later.milliseconds - self.milliseconds


def test_the_stages_of_a_cpu_are_the_whole_time_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.5, 3.5, 4.0])
    monkeypatch.setattr(stage_timer, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    timer = StageTimer(torch.device("cpu"))
    for stage in STAGES:
        timer.mark(stage)
    assert list(timer.seconds().items()) == [("transform", 0.5), ("backbone", 2.0), ("postprocess", 0.5)]


def test_a_gpu_is_waited_for_once_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("a stage waited for the whole device"))
    timer = StageTimer(torch.device("cuda:1"))
    for stage in STAGES:
        timer.mark(stage)
    assert Event.waits == 0
    assert timer.seconds() == pytest.approx({"transform": 0.03, "backbone": 0.05, "postprocess": 0.07})
    assert Event.waits == 1


@pytest.mark.gpu
def test_a_gpu_stage_lasts_as_long_as_its_work() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    timer = StageTimer(device)
    timer.mark("nothing")
    for _ in range(20):
        matrix = matrix @ matrix
    timer.mark("products")
    seconds = timer.seconds()
    assert seconds["products"] > seconds["nothing"] >= 0
