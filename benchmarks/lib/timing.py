"""Time calls: once, repeatedly, or several in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

Wait = Callable[[], object]  # returns when the device is idle


def nothing() -> None:
    """Wait for nothing: on a CPU a call that has returned is done."""


def time_call(call: Callable[[], object], wait: Wait = nothing) -> float:
    """Return the seconds of one call, from an idle device to an idle device."""
    wait()
    begin = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begin


def repeat(call: Callable[[], object], count: int, *, warm_up: int = 1, wait: Wait = nothing) -> list[float]:
    """Return the seconds of each of ``count`` calls, after ``warm_up`` that are not counted."""
    for _ in range(warm_up):
        call()
    return [time_call(call, wait) for _ in range(count)]


def interleave(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    turn: float = 0.0,
    deadline: float = float("inf"),
    wait: Wait = nothing,
    prepare: Callable[[str], object] = lambda _: None,
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Time several calls in turns, forwards and backwards, so that a slow minute of the machine hits all of them.

    In each round each call repeats itself for ``turn`` seconds, at least once. ``prepare`` gets a call's name before
    each of its calls and is not timed. No round but the first begins after ``deadline``, of ``time.monotonic``.
    Returns seconds by name, and for calls that raised, which are left out from then on, the exception by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    errors: dict[str, Exception] = {}
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        for name in list(calls) if number % 2 == 0 else reversed(list(calls)):
            if name in errors:
                continue
            until = time.monotonic() + turn
            try:
                while True:
                    prepare(name)
                    seconds[name].append(time_call(calls[name], wait))
                    if time.monotonic() >= until:
                        break
            except Exception as error:
                errors[name] = error
    return seconds, errors


class ModuleTimer:
    """Times parts of a model from outside, by hooks.

    seconds: by part, of its latest call; on a GPU each part ends when the device has done it.
    """

    def __init__(self, parts: Mapping[str, nn.Module], wait: Wait = nothing) -> None:
        self.seconds: dict[str, float] = {}
        self._wait = wait
        for name, module in parts.items():
            self._watch(name, module)

    def _watch(self, name: str, module: nn.Module) -> None:
        begin = 0.0

        def before(*_: Any) -> None:
            nonlocal begin
            self._wait()
            begin = time.perf_counter()

        def after(*_: Any) -> None:
            self._wait()
            self.seconds[name] = time.perf_counter() - begin

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
