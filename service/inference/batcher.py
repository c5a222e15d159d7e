"""The queue between the requests and the devices: one worker each, and all of them take from it.

It never waits while a device is idle: what is there goes. While all are busy, pictures gather, grouped by
canvas (the padded size, which each picture chooses alone), and the group whose head has waited longest goes next, so a
rare canvas never starves. The queue is bounded by pictures and by pixels; over either, ``QueueFull``.

A worker that dies ends the whole: the others finish the batch they have, and nothing new begins.

All of this runs on the event loop; only ``Worker`` has a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from model.structures import Detections, DetectOptions
from service.errors import (
    DeadlinePassed,
    NotFinite,
    OutOfMemory,
    PictureFailed,
    QueueFull,
    ServiceError,
    Unavailable,
)
from service.inference.batch_bound import BatchBound
from service.inference.decoding import Picture
from service.inference.pace import Pace
from service.inference.worker import BatchReport, Outcome, Task, Worker, WorkerDead
from service.metrics import Metrics

log = logging.getLogger("frcnn.batching")

Canvas = tuple[int, int]
_FAILED = "The detector has failed and the service will be replaced; try again."


@dataclass(frozen=True)
class Limits:
    """max_batch, max_queue: pictures. max_batch_pixels: padded. max_queue_pixels: padded or decoded, the larger."""

    max_batch: int
    max_batch_pixels: int
    max_queue: int
    max_queue_pixels: int


@dataclass(frozen=True)
class Detected:
    """A picture's result, and when its batch began and had been run: ``time.monotonic`` seconds."""

    detections: Detections
    started: float
    finished: float


@dataclass(eq=False)
class _Waiting:
    task: Task
    canvas: Canvas
    pixels: int  # what it costs to keep: as decoded, or padded, whichever is more
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    answer: asyncio.Future[Detected] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Gathers pictures into batches for started ``workers``. ``run`` must be going on for answers to come."""

    def __init__(self, workers: Sequence[Worker], limits: Limits, metrics: Metrics) -> None:
        """workers: with detectors that are alike; there may be none yet, but none is added once ``run`` goes on."""
        self._workers = workers
        self._limits = limits
        self._metrics = metrics
        self._lanes: dict[Canvas, deque[_Waiting]] = {}
        self._wake = asyncio.Event()
        self._visits = 0
        self._places = 0
        self._pixels = 0
        self._pace = Pace()
        self._draining = False
        self._ended = False
        self.on_death: Callable[[], None] = lambda: None

    @property
    def waiting(self) -> int:
        """Pictures that hold a place: being decoded, queued, or on the device."""
        return self._places

    @property
    def retry_after(self) -> int:
        """Seconds until there should be room, from the rate at which pictures were lately answered; 1 to 60."""
        return self._pace.seconds_for(self._share(max(1, self._places)))

    @property
    def _alive(self) -> bool:
        return bool(self._workers) and all(worker.alive for worker in self._workers)

    def _share(self, pictures: int) -> int:
        """Of so many pictures, those that one device has to do."""
        return math.ceil(pictures / len(self._workers))

    @contextlib.contextmanager
    def visit(self) -> Iterator[None]:
        """A request, of one picture or several, is accepted: a drain waits for its end. Raises ``Unavailable``."""
        self._check_serving()
        self._visits += 1
        try:
            yield
        finally:
            self._visits -= 1

    @contextlib.contextmanager
    def place(self, deadline: float) -> Iterator[None]:
        """Hold a picture's place, inside a visit, from before it is decoded until its answer.

        Raises ``QueueFull`` where there is none, or where it would not be answered by ``deadline``.
        """
        self._check_room(deadline)
        self._places += 1
        self._metrics.queue_depth.set(self._places)
        try:
            yield
        finally:
            self._places -= 1
            self._metrics.queue_depth.set(self._places)

    def check_open(self, deadline: float = math.inf) -> None:
        """Raises what ``visit`` and ``place`` would, so that a request can be refused before its body is read."""
        self._check_serving()
        self._check_room(deadline)

    def _check_serving(self) -> None:
        if self._draining:
            raise Unavailable("The service is shutting down; send the request to another instance.", retry_after=5)
        if not self._alive:
            raise Unavailable(_FAILED, retry_after=10)

    def _check_room(self, deadline: float) -> None:
        if self._places >= self._limits.max_queue:
            raise self._full()
        # Whoever would get a 504 after all the waiting does better elsewhere, or later; and if such were let in, a slow
        # device would do nothing but work that comes too late. An empty queue takes anybody: so the pace is kept fresh.
        if self._places and time.monotonic() + self._pace.seconds(self._share(self._places + 1)) > deadline:
            raise QueueFull(
                f"{self._places} pictures are waiting, and this one would not be answered before its deadline; "
                "try again after the time in Retry-After, or allow more with X-Request-Timeout-Ms.",
                retry_after=self.retry_after,
            )

    async def submit(self, image: Picture, options: DetectOptions, deadline: float) -> Detected:
        """Queue a picture and wait for its result; call it inside ``place``.

        deadline: ``time.monotonic`` seconds. Cancelling drops the picture if its batch has not begun. Raises
        ``QueueFull``, ``DeadlinePassed``, ``Unavailable``; for this picture alone ``PictureFailed``, ``OutOfMemory`` or
        ``NotFinite``.
        """
        if not self._alive:  # one died while the picture was being decoded: nobody would answer
            raise Unavailable(_FAILED, retry_after=10)
        canvas = self._workers[0].detector.canvas_for(*(options.full_size or image.shape[:2]))
        pixels = max(canvas[0] * canvas[1], image.shape[0] * image.shape[1])
        if self._pixels and self._pixels + pixels > self._limits.max_queue_pixels:  # an empty queue takes any picture
            raise self._full()
        waiting = _Waiting(Task(image, options), canvas, pixels, deadline)
        self._lanes.setdefault(canvas, deque()).append(waiting)
        self._pixels += pixels
        self._wake.set()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await waiting.answer
        except TimeoutError:
            raise DeadlinePassed(
                "The deadline passed before there was a result; allow more time with X-Request-Timeout-Ms, "
                "or send fewer requests at once."
            ) from None
        finally:
            self._forget(waiting)

    async def run(self) -> None:
        """Feed the workers until cancelled, or until one is dead: all are then told so, and ``on_death`` is called."""
        await asyncio.gather(*(self._feed(worker) for worker in self._workers))

    async def _feed(self, worker: Worker) -> None:
        bound = BatchBound(self._limits.max_batch)  # each device has a memory of its own
        while self._alive:
            batch = self._next_batch(bound.size)
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._dispatch(worker, bound, batch)
            except WorkerDead as death:
                worker.give_up(str(death))  # its thread may still be on its last lines
                self._fail(batch)
            except Exception:  # a fault of ours: better replaced than silent
                log.exception("the queue has failed")
                worker.give_up("The queue has failed.")
                self._fail(batch)
        self._end()

    def _end(self) -> None:
        """A worker is dead: once, whichever feeder sees it first."""
        if self._ended:
            return
        self._ended = True
        self._fail([waiting for lane in self._lanes.values() for waiting in lane])
        self._lanes.clear()
        self._metrics.ready.set(0)
        self._wake.set()  # the feeders of idle devices are to see it too
        self.on_death()

    async def drain(self) -> None:
        """Take nothing new, and return when every accepted request has its results."""
        self._draining = True
        while self._visits:
            await asyncio.sleep(0.01)

    def _full(self) -> QueueFull:
        return QueueFull(
            f"{self._places} pictures are waiting, as many as may; try again after the time in Retry-After.",
            retry_after=self.retry_after,
        )

    def _next_batch(self, most: int) -> list[_Waiting]:
        """The next pictures for a device: those of the canvas whose oldest has waited longest, ``most`` of them."""
        self._drop_the_late()
        if not self._lanes:
            return []
        canvas, lane = min(self._lanes.items(), key=lambda item: item[1][0].arrived)
        area = canvas[0] * canvas[1]
        room = min(most, max(1, self._limits.max_batch_pixels // area))
        batch = [lane.popleft() for _ in range(min(room, len(lane)))]
        self._tidy(canvas)
        return batch

    def _drop_the_late(self) -> None:
        """A deadline's timer may be due and not have run yet: work that nobody will read must not reach the device."""
        now = time.monotonic()
        for canvas, lane in list(self._lanes.items()):
            for waiting in [w for w in lane if w.deadline <= now or w.answer.done()]:
                lane.remove(waiting)
            self._tidy(canvas)

    async def _dispatch(self, worker: Worker, bound: BatchBound, batch: list[_Waiting]) -> None:
        started = time.monotonic()
        self._measure(batch)
        self._pace.begins()
        report = await worker.run([waiting.task for waiting in batch])
        self._pace.ends(len(batch), time.monotonic() - started)
        self._learn(report, bound, len(batch))
        for waiting, outcome in zip(batch, report.outcomes, strict=True):
            if waiting.answer.done():  # its deadline passed, or its client has gone, while it was on the device
                continue
            if outcome.detections is not None:
                waiting.answer.set_result(Detected(outcome.detections, outcome.started, outcome.finished))
            else:
                waiting.answer.set_exception(_failure(outcome))

    def _measure(self, batch: list[_Waiting]) -> None:
        padded = len(batch) * batch[0].canvas[0] * batch[0].canvas[1]
        self._metrics.batch_size.observe(len(batch))
        used = sum(min(w.task.image.shape[0] * w.task.image.shape[1], padded // len(batch)) for w in batch)
        self._metrics.canvas_padding_ratio.observe(1 - used / padded)

    def _learn(self, report: BatchReport, bound: BatchBound, size: int) -> None:
        for kind in report.failures:
            self._metrics.batch_failures.labels(kind).inc()
        if report.out_of_memory_at is not None:
            bound.ran_out(report.out_of_memory_at)
        else:
            bound.went_well(size)

    @staticmethod
    def _fail(batch: list[_Waiting]) -> None:
        """The worker is dead: who is still there is told so."""
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(Unavailable(_FAILED, retry_after=10))

    def _forget(self, waiting: _Waiting) -> None:
        """The caller has its answer or has gone: give back its pixels, and its seat if it still waits."""
        waiting.answer.cancel()
        self._pixels -= waiting.pixels
        lane = self._lanes.get(waiting.canvas)
        if lane is not None and waiting in lane:
            lane.remove(waiting)
            self._tidy(waiting.canvas)

    def _tidy(self, canvas: Canvas) -> None:
        if not self._lanes[canvas]:
            del self._lanes[canvas]


def _failure(outcome: Outcome) -> ServiceError:
    """What the client is told of a picture that failed alone."""
    if outcome.kind == "not_finite":
        return NotFinite(
            "The network's values overflowed for this image; others are not affected. Try another form of it, or ask "
            "the operator to serve with FRCNN_PRECISION=fp32."
        )
    if outcome.kind == "memory":
        return OutOfMemory(
            "The device has too little memory for this image alone; others are not affected. Send a smaller image, "
            "or ask the operator to serve with a lower precision or a smaller model."
        )
    return PictureFailed("The detector failed on this picture; others are not affected. Try another form of it.")
