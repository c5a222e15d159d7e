import time

import pytest
from torch import nn, tensor

from benchmarks.lib import timing


def test_calls_take_turns_forwards_and_backwards() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds, errors = timing.interleave(calls, 3)
    assert "".join(order) == "abccbaabc"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert errors == {}


def test_a_call_repeats_itself_for_its_turn_and_is_prepared_outside_of_its_time() -> None:
    prepared: list[str] = []

    def prepare(name: str) -> None:
        prepared.append(name)
        time.sleep(0.01)

    seconds, _ = timing.interleave({"a": lambda: None}, 1, turn=0.05, prepare=prepare)
    assert 2 <= len(seconds["a"]) == len(prepared) <= 6
    assert max(seconds["a"]) < 0.01


def test_a_call_that_raises_is_left_out_from_then_on() -> None:
    calls = []

    def fail_later() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("too late")

    seconds, errors = timing.interleave({"good": lambda: None, "bad": fail_later}, 4)
    assert len(seconds["good"]) == 4
    assert len(calls) == 2
    assert str(errors["bad"]) == "too late"


def test_no_round_but_the_first_begins_after_the_deadline() -> None:
    seconds, _ = timing.interleave({"a": lambda: None}, 5, deadline=time.monotonic() - 1)
    assert len(seconds["a"]) == 1


def test_warming_up_is_not_counted_and_the_device_is_waited_for() -> None:
    events: list[str] = []
    seconds = timing.repeat(lambda: events.append("call"), 2, warm_up=1, wait=lambda: events.append("wait"))
    assert events == ["call", *("wait", "call", "wait") * 2]
    assert len(seconds) == 2


def test_parts_of_a_model_are_timed_from_outside() -> None:
    class Slow(nn.Module):
        def forward(self, values: object) -> object:
            time.sleep(0.02)
            return values

    model = nn.Sequential(nn.Identity(), Slow())
    seconds = timing.ModuleTimer({"first": model[0], "second": model[1]}).seconds
    model(tensor(1.0))
    assert seconds.keys() == {"first", "second"}
    assert seconds["first"] < 0.02 <= seconds["second"] == pytest.approx(0.02, abs=0.5)
