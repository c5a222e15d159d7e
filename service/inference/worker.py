"""The thread that owns a detector.

A batch of tasks goes in; each comes back with detections or an error. A batch that fails is split and tried again,
down to single images, so that only the request whose image causes the failure fails. The self-test then tells whether
the detector itself still works. A call that does not return in time is given up: a thread cannot be stopped, so the
process has to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from model.structures import Detections, NotFiniteError
from service.errors import ImageFailed, NotFinite, OutOfMemory, ServiceError, StartError
from service.inference.detector import DetectorLike
from service.inference.memory import advise_for_image, is_out_of_memory, memory_at_start
from service.inference.queue import Task
from service.inference.self_test import SelfTest, SelfTestError

log = logging.getLogger("frcnn.worker")
_T = TypeVar("_T")

# Why an attempt at a batch failed: too little memory, values that overflowed, or anything else. Labels of
# frcnn_batch_failures_total.
FailureKind = Literal["memory", "not_finite", "error"]
Outcome = Detections | ServiceError


@dataclass
class BatchReport:
    """The outcomes and failures of one batch.

    outcomes: detections or the client's error for each task, in order. failures: kinds of the attempts that failed.
    out_of_memory_at: images in the smallest attempt that ran out of memory; None where none did. suspicious: whether
    the detector itself may be at fault and has to pass the self-test; not where only some images of an attempt failed.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[FailureKind] = field(default_factory=list)
    out_of_memory_at: int | None = None
    suspicious: bool = False


class WorkerFailed(Exception):
    """The detector has failed for good; the process has to be replaced."""


class Worker:
    """A detector in a thread of its own. Call ``start`` first and ``stop`` at the end."""

    def __init__(self, load: Callable[[], DetectorLike], watchdog_seconds: float) -> None:
        """Prepare the thread; ``start`` starts it.

        load: makes the detector, in the thread. watchdog_seconds: the longest that one call of the detector may take.
        """
        self._load = load
        self._watchdog_seconds = watchdog_seconds
        self._call_started: float | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A daemon, so that a call that hangs on the device cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run_thread, name="frcnn-worker", daemon=True)
        self._detector: DetectorLike | None = None
        self._self_test: SelfTest | None = None
        self.failure_reason: str | None = None

    @property
    def detector(self) -> DetectorLike:
        """Return the detector; only ``info`` and ``canvas_for`` may be called from other threads."""
        assert self._detector is not None, "start() has not returned yet"
        return self._detector

    @property
    def alive(self) -> bool:
        """Return whether batches can be run."""
        return self._detector is not None and self.failure_reason is None and self._thread.is_alive()

    async def start(self) -> None:
        """Load the detector, warm it up and run the self-test.

        Raises ``StartError`` for too little memory or a failed self-test, and what the detector raises.
        """
        self._thread.start()
        await self._call(self._open)

    async def run(self, tasks: Sequence[Task]) -> BatchReport:
        """Run ``tasks`` as one batch. Raises ``WorkerFailed`` where the detector has failed for good."""
        if not self.alive:
            raise WorkerFailed(self.failure_reason or "The worker thread has ended.")
        report = asyncio.ensure_future(self._call(lambda: self._run_batch(tasks)))
        while not (await asyncio.wait({report}, timeout=min(1.0, self._watchdog_seconds)))[0]:
            self._watch()
            if self.failure_reason is not None:
                report.cancel()
                raise WorkerFailed(self.failure_reason)
        return report.result()

    def give_up(self, reason: str) -> None:
        """Mark the worker as failed: it runs nothing any more. ``reason`` is for the log."""
        if self.failure_reason is None:
            self.failure_reason = reason
            device = self._detector.info.device if self._detector is not None else "unknown"
            log.error("the worker has failed", extra={"reason": reason, "device": device})

    async def stop(self, seconds: float) -> None:
        """Let the thread end after its current work, and wait for that, at most ``seconds``."""
        self._inbox.put(None)
        if self.failure_reason is None and self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, seconds)

    async def _call(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def deliver(result: _T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def send(result: _T | None, error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the result is not needed
                loop.call_soon_threadsafe(deliver, result, error)

        def run() -> None:
            try:
                result = work()
            except BaseException as error:
                send(None, _transferable(error))
                if not isinstance(error, Exception):
                    raise
            else:
                send(result, None)

        self._inbox.put(run)
        return await future

    def _watch(self) -> None:
        started = self._call_started
        if started is not None and time.monotonic() - started > self._watchdog_seconds:
            self.give_up(f"A call of the detector has not come back for {self._watchdog_seconds:g} s.")
        elif not self._thread.is_alive():
            self.give_up("The worker thread has ended.")

    def _run_thread(self) -> None:
        try:
            while (work := self._inbox.get()) is not None:
                work()
        except BaseException as error:
            log.exception("the worker thread has ended")
            self.give_up(f"The worker thread has ended ({type(error).__name__}).")

    def _open(self) -> None:
        with memory_at_start("while the weights were loaded"):
            detector = self._load()
        with memory_at_start("while the detector warmed up"):
            detector.warm_up()
            self._self_test = _prepare_self_test(detector)
        self._detector = detector

    def _run_batch(self, tasks: Sequence[Task]) -> BatchReport:
        report = BatchReport()
        report.outcomes = self._attempt(tasks, report)
        if report.suspicious:
            self._run_self_test()
        return report

    def _attempt(self, tasks: Sequence[Task], report: BatchReport) -> list[Outcome]:
        """Run ``tasks`` in one call of the detector, or in two halves where that fails; note failures in ``report``."""
        started = time.monotonic()
        try:
            with self._watched_call():
                results = self.detector.detect([task.image for task in tasks], [task.options for task in tasks])
            _set_times(tasks, started)
            if len(results) != len(tasks):
                raise RuntimeError(f"The detector returned {len(results)} results for {len(tasks)} images.")
            return list(results)
        except NotFiniteError as error:
            # The other images' results are right: nothing is computed again.
            _set_times(tasks, started)
            report.failures.append("not_finite")
            report.suspicious |= all(result is None for result in error.results)
            log.warning("values are not finite", extra={"images": len(tasks), "failure": str(error)})
            return [_client_error("not_finite") if result is None else result for result in error.results]
        except Exception as error:
            kind = self._note_failure(error, len(tasks), report)
        # Outside the handler: the traceback, and the device memory that it refers to, are gone by now.
        if len(tasks) == 1:
            _set_times(tasks, started)
            return [_client_error(kind)]
        half = len(tasks) // 2
        return self._attempt(tasks[:half], report) + self._attempt(tasks[half:], report)

    @staticmethod
    def _note_failure(error: Exception, images: int, report: BatchReport) -> FailureKind:
        kind: FailureKind = "memory" if is_out_of_memory(error) else "error"
        report.failures.append(kind)
        report.suspicious = True
        fields = {"images": images, "failure": f"{type(error).__name__}: {error}"[:500]}
        if kind == "memory":  # no traceback: it does not matter where in the network memory ran out
            report.out_of_memory_at = min(report.out_of_memory_at or images, images)
            advice = {"advice": advise_for_image(error)} if images == 1 else {}
            log.warning("a batch ran out of memory", extra=fields | advice)
        else:
            log.warning("a batch failed", extra=fields, exc_info=images == 1)
        return kind

    def _run_self_test(self) -> None:
        assert self._self_test is not None
        try:
            with self._watched_call():
                self._self_test.check(self.detector)
        except Exception as error:
            log.error("the self-test failed", exc_info=True)
            self.give_up(f"The detector fails its self-test after a batch failed ({type(error).__name__}: {error}).")

    @contextlib.contextmanager
    def _watched_call(self) -> Iterator[None]:
        """Note when a call of the detector began, for ``_watch`` on the event loop's side."""
        self._call_started = time.monotonic()
        try:
            yield
        finally:
            self._call_started = None


def _set_times(tasks: Sequence[Task], started: float) -> None:
    finished = time.monotonic()
    for task in tasks:
        task.started, task.finished = started, finished


def _client_error(kind: FailureKind) -> ServiceError:
    """Return the error for the client of an image that failed alone."""
    if kind == "not_finite":
        return NotFinite(
            "The network's values overflowed for this image; others are not affected. Try another size or format, or "
            "ask the operator to serve with FRCNN_PRECISION=bf16 or fp32, or to check the checkpoint's weights."
        )
    if kind == "memory":
        return OutOfMemory(
            "The device has too little memory for this image alone; others are not affected. Send a smaller image, "
            "or ask the operator to serve with a lower precision or a smaller model."
        )
    return ImageFailed("The detector failed on this image; others are not affected. Try another size or format.")


def _prepare_self_test(detector: DetectorLike) -> SelfTest:
    """Return the self-test, passed once. Raises ``StartError`` where the detector fails it."""
    try:
        return SelfTest.prepare(detector)
    except SelfTestError as error:
        raise StartError(
            f"The detector's answer to the self-test is not the right one: {error}. This device or this library "
            "computes something else; try FRCNN_PRECISION=fp32 or FRCNN_DEVICE=cpu."
        ) from error


def _transferable(error: BaseException) -> BaseException:
    """Wrap what a future refuses (``StopIteration``) and what would end asyncio's loop (``SystemExit``)."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return WorkerFailed(f"The worker thread has ended ({type(error).__name__}).")
