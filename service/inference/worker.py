"""The thread that owns a detector.

One batch at a time goes in, one outcome a picture comes out. A batch that fails is split and tried again, down to
single pictures, so that only the culprit's request fails. Whether the detector itself is still sound after that, the
canary tells. A call that does not come back is given up: the thread cannot be stopped, but the process can.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from model.structures import Detections, DetectOptions, DetectorInfo, NotFiniteError
from service.errors import StartError
from service.inference.decoding import Picture
from service.inference.memory import advise_for_image, is_out_of_memory, memory_at_start
from service.inference.self_test import Canary, CanaryError

log = logging.getLogger("frcnn.worker")
_T = TypeVar("_T")


class Detects(Protocol):
    """What the service needs of ``model.detector.Detector``."""

    @property
    def info(self) -> DetectorInfo: ...
    def canvas_for(self, height: int, width: int) -> tuple[int, int]: ...
    def warm_up(self) -> None: ...
    def detect(self, images: Sequence[Picture], options: Sequence[DetectOptions]) -> list[Detections]: ...


@dataclass(frozen=True)
class Task:
    """One picture, uint8 [H, W, 3] RGB, and what its caller wants."""

    image: Picture
    options: DetectOptions


@dataclass(frozen=True)
class Outcome:
    """What became of one task: detections, or None with the reason it failed.

    started, finished: ``time.monotonic`` seconds of the attempt that decided it. kind: of the failure, ``memory`` (the
    device has too little of it for this picture alone), ``not_finite`` (the network's values overflowed) or ``error``.
    """

    detections: Detections | None
    started: float
    finished: float
    failure: str = ""
    kind: str = ""


@dataclass
class BatchReport:
    """What became of one batch.

    outcomes: one a task, in their order. failures: kinds (as in ``Outcome``) of the attempts that failed.
    out_of_memory_at: pictures in the smallest attempt that ran out of memory; None where none did. suspicious: whether
    the detector itself may be at fault, and is to pass the canary: not where some answers of a batch were right.
    """

    outcomes: list[Outcome]
    failures: list[str]
    out_of_memory_at: int | None = None
    suspicious: bool = False


class WorkerDead(Exception):
    """The detector cannot be relied on any more; the process should be replaced."""


class Worker:
    """Runs a detector in a thread of its own. ``start`` before anything else, ``stop`` at the end."""

    def __init__(self, load: Callable[[], Detects], patience: float) -> None:
        """load: makes the detector, in the thread. patience: seconds that one call of it may take once it serves."""
        self._load = load
        self._patience = patience
        self._call_began: float | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A daemon, so that a call that hangs on the device cannot keep the process from ending.
        self._thread = threading.Thread(target=self._live, name="frcnn-worker", daemon=True)
        self._detector: Detects | None = None
        self._canary: Canary | None = None
        self.dead: str | None = None

    @property
    def detector(self) -> Detects:
        """The detector; only ``info`` and ``canvas_for`` may be called from other threads."""
        assert self._detector is not None, "start() has not returned yet"
        return self._detector

    @property
    def alive(self) -> bool:
        """Whether batches can be run."""
        return self._detector is not None and self.dead is None and self._thread.is_alive()

    async def start(self) -> None:
        """Load the detector, warm it up and hold it to the canary.

        Raises ``StartError`` for too little memory and a wrong answer to the canary, and what the detector raises.
        """
        self._thread.start()
        await self._call(self._open)

    async def run(self, tasks: Sequence[Task]) -> BatchReport:
        """Detect in one batch. Raises ``WorkerDead`` where the detector has failed for good."""
        if not self.alive:
            raise WorkerDead(self.dead or "The worker thread has ended.")
        answer = asyncio.ensure_future(self._call(lambda: self._detect(tasks)))
        while not (await asyncio.wait({answer}, timeout=min(1.0, self._patience)))[0]:
            self._watch()
            if self.dead is not None:
                answer.cancel()
                raise WorkerDead(self.dead)
        return answer.result()

    def give_up(self, reason: str) -> None:
        """Nothing is run any more; ``reason`` is for the log."""
        if self.dead is None:
            self.dead = reason
            device = self._detector.info.device if self._detector is not None else "unknown"
            log.error("the worker is dead", extra={"reason": reason, "device": device})

    async def stop(self, seconds: float) -> None:
        """Let the thread end after what it is doing, and wait for that, so long at most."""
        self._inbox.put(None)
        if self.dead is None and self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, seconds)

    async def _call(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def deliver(result: _T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def tell(result: _T | None, error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
                loop.call_soon_threadsafe(deliver, result, error)

        def task() -> None:
            try:
                result = work()
            except BaseException as error:
                tell(None, _transferable(error))
                if not isinstance(error, Exception):
                    raise
            else:
                tell(result, None)

        self._inbox.put(task)
        return await answer

    def _watch(self) -> None:
        began = self._call_began
        if began is not None and time.monotonic() - began > self._patience:
            self.give_up(f"A call of the detector has not come back for {self._patience:g} s.")
        elif not self._thread.is_alive():
            self.give_up("The worker thread has ended.")

    def _live(self) -> None:
        try:
            while (task := self._inbox.get()) is not None:
                task()
        except BaseException as error:
            log.exception("the worker thread has ended")
            self.give_up(f"The worker thread has ended ({type(error).__name__}).")

    def _open(self) -> None:
        with memory_at_start("while the weights were loaded"):
            detector = self._load()
        with memory_at_start("while the detector warmed up"):
            detector.warm_up()
            self._canary = _canary(detector)
        self._detector = detector

    def _detect(self, tasks: Sequence[Task]) -> BatchReport:
        report = BatchReport([], [])
        report.outcomes = self._attempt(tasks, report)
        if report.suspicious:
            self._check()
        return report

    def _attempt(self, tasks: Sequence[Task], report: BatchReport) -> list[Outcome]:
        started = time.monotonic()
        try:
            with self._timed():
                found = self.detector.detect([task.image for task in tasks], [task.options for task in tasks])
            finished = time.monotonic()
            if len(found) != len(tasks):
                raise RuntimeError(f"The detector gave {len(found)} answers for {len(tasks)} pictures.")
            return [Outcome(detections, started, finished) for detections in found]
        except NotFiniteError as error:
            # The others' answers are right: nothing is computed again.
            finished, failure = time.monotonic(), str(error)
            report.failures.append("not_finite")
            report.suspicious |= all(result is None for result in error.results)
            log.warning("values are not finite", extra={"pictures": len(tasks), "failure": failure})
            return [
                Outcome(result, started, finished, *(() if result is not None else (failure, "not_finite")))
                for result in error.results
            ]
        except Exception as error:
            failure, out_of_memory = f"{type(error).__name__}: {error}", is_out_of_memory(error)
            kind = "memory" if out_of_memory else "error"
            report.failures.append(kind)
            report.suspicious = True
            if out_of_memory:
                report.out_of_memory_at = min(report.out_of_memory_at or len(tasks), len(tasks))
            said = {"pictures": len(tasks), "failure": failure[:500]}
            if out_of_memory:  # where in the network that happened is of no use to anybody
                advice = {"advice": advise_for_image(error)} if len(tasks) == 1 else {}
                log.warning("a batch ran out of memory", extra=said | advice)
            else:
                log.warning("a batch failed", extra=said, exc_info=len(tasks) == 1)
        # Outside the handler: the traceback, and the device memory that it holds on to, are gone by now.
        if len(tasks) == 1:
            return [Outcome(None, started, time.monotonic(), failure, kind)]
        half = len(tasks) // 2
        return self._attempt(tasks[:half], report) + self._attempt(tasks[half:], report)

    def _check(self) -> None:
        assert self._canary is not None
        try:
            with self._timed():
                self._canary.check(self.detector)
        except Exception as error:
            log.error("the canary failed", exc_info=True)
            self.give_up(f"The detector fails on its canary since a batch failed ({type(error).__name__}: {error}).")

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """One call of the detector, for ``_watch`` on the event loop's side to see."""
        self._call_began = time.monotonic()
        try:
            yield
        finally:
            self._call_began = None


def _canary(detector: Detects) -> Canary:
    """The canary, passed once. Raises ``StartError`` where the detector's answer is not the right one."""
    try:
        return Canary.prepare(detector)
    except CanaryError as error:
        raise StartError(
            f"The detector's answer to the canary is not the right one: {error}. This device or this library computes "
            "something else; try FRCNN_PRECISION=fp32 or FRCNN_DEVICE=cpu."
        ) from error


def _transferable(error: BaseException) -> BaseException:
    """A future refuses StopIteration, and asyncio would end the loop on SystemExit: wrap those."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return WorkerDead(f"The worker thread has ended ({type(error).__name__}).")
