"""Batches between the requests and the devices: each device has a worker, and all workers take from one queue.

An image never waits while a device is idle. While all devices are busy, images wait in the queue, which is bounded by
images and by pixels; over either limit, ``QueueFull``.

A worker that dies ends the service: the others finish their batch, and nothing new begins.

All of this runs on the event loop; only ``Worker`` has a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence

from model.structures import Detections
from service.errors import DeadlinePassed, QueueFull, ServiceError, Unavailable
from service.inference.limits import BatchSizeLimit, QueueLimits, Throughput
from service.inference.queue import ImageQueue, Task
from service.inference.worker import BatchReport, Worker, WorkerFailed
from service.metrics import Metrics

log = logging.getLogger("frcnn.batching")

_FAILED = "The detector has failed and the service will be replaced; try again."


class Batcher:
    """Collect images in batches for started ``workers``. Tasks have results only while ``run`` is running."""

    def __init__(self, workers: Sequence[Worker], limits: QueueLimits, metrics: Metrics) -> None:
        """Send batches to ``workers``.

        workers: with equal detectors; the caller may add to the list until it calls ``run``.
        """
        self._workers = workers
        self._limits = limits
        self._metrics = metrics
        self.queue = ImageQueue()
        self.throughput = Throughput()
        self._wake = asyncio.Event()
        self._requests = 0
        self._slots = 0
        self._pixels = 0
        self._draining = False
        self._ended = False
        self.on_failure: Callable[[], None] = lambda: None
        self.on_closing: Callable[[], None] = lambda: None

    @property
    def slots_in_use(self) -> int:
        """Return the number of images that hold a slot: being decoded, queued, or on a device."""
        return self._slots

    @property
    def retry_after(self) -> int:
        """Return the seconds until a slot is expected to be free, 1 to 60, estimated from the last batches."""
        return self.throughput.retry_after(self._per_device(max(1, self._slots)))

    @property
    def requests_in_progress(self) -> int:
        """Return the number of accepted requests that are not answered yet: what a drain waits for."""
        return self._requests

    @property
    def closing(self) -> bool:
        """Return whether nothing new is accepted any more; ``on_closing`` is called when that begins."""
        return self._draining or not self._alive

    @contextlib.contextmanager
    def track_request(self) -> Iterator[None]:
        """Accept a request, of one image or several: a drain waits until the block ends. Raises ``Unavailable``."""
        self.check_serving()
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextlib.contextmanager
    def reserve_slot(self, deadline: float) -> Iterator[None]:
        """Hold one image's slot, inside ``track_request``, from before it is decoded until its result.

        Raises ``QueueFull`` where none is free, or where the result would not be there by ``deadline``.
        """
        self._check_slots(deadline)
        self._slots += 1
        self._metrics.queue_depth.set(self._slots)
        try:
            yield
        finally:
            self._slots -= 1
            self._metrics.queue_depth.set(self._slots)

    def check_serving(self) -> None:
        """Raise ``Unavailable`` while the service drains, and after a worker has failed."""
        if self._draining:
            raise Unavailable("The service is shutting down; send the request to another instance.", retry_after=5)
        if not self._alive:
            raise Unavailable(_FAILED, retry_after=10)

    def check_open(self, deadline: float = math.inf) -> None:
        """Raise what ``track_request`` and ``reserve_slot`` would, so that a request is refused before its body is
        read.
        """
        self.check_serving()
        self._check_slots(deadline)

    @contextlib.contextmanager
    def reserve_pixels(self, count: int) -> Iterator[None]:
        """Hold the pixels of one decoded image, inside ``reserve_slot``, for as long as they are in memory.

        Raises ``QueueFull`` over the limit of all images; where there is no other, one of any size is accepted.
        """
        if self._pixels and self._pixels + count > self._limits.max_queue_pixels:
            raise QueueFull(
                "The images in progress have as many pixels as the limit allows; try again after the time in "
                "Retry-After, or send a smaller image.",
                retry_after=self.retry_after,
            )
        self._pixels += count
        try:
            yield
        finally:
            self._pixels -= count

    async def submit(self, task: Task) -> Detections:
        """Queue ``task`` and wait for its result; call it inside ``reserve_slot`` and ``reserve_pixels``.

        Cancelling drops the task if its batch has not begun. Raises ``DeadlinePassed``, ``Unavailable``; for this image
        alone ``ImageFailed``, ``OutOfMemory`` or ``NotFinite``.
        """
        if not self._alive:  # a worker died while the image was being decoded: the task would have no result
            raise Unavailable(_FAILED, retry_after=10)
        self.queue.add(task)
        self._wake.set()
        try:
            async with asyncio.timeout(task.deadline - time.monotonic()):
                return await task.result
        except TimeoutError:
            raise DeadlinePassed(
                "The deadline passed before there was a result; allow more time with X-Request-Timeout-Ms, "
                "or send fewer requests at once."
            ) from None
        finally:
            task.result.cancel()
            self.queue.discard(task)

    async def run(self) -> None:
        """Feed the workers until cancelled, or until one fails: all tasks then fail, and ``on_failure`` is called."""
        await asyncio.gather(*(self._feed(worker) for worker in self._workers))

    async def drain(self) -> None:
        """Accept nothing new, and return when every accepted request has been answered."""
        self._draining = True
        self.on_closing()
        while self._requests:
            await asyncio.sleep(0.01)

    @property
    def _alive(self) -> bool:
        return bool(self._workers) and all(worker.alive for worker in self._workers)

    def _per_device(self, images: int) -> int:
        return math.ceil(images / len(self._workers))

    def _check_slots(self, deadline: float) -> None:
        if self._slots >= self._limits.max_queue:
            raise QueueFull(
                f"{self._slots} images are in progress, which is the limit; try again after the time in Retry-After.",
                retry_after=self.retry_after,
            )
        # A request that would wait and then end with 504 is refused now. Otherwise a slow device would spend all its
        # time on results that come too late. Where nothing is in progress, any is accepted: so the estimate stays
        # up to date.
        if self._slots and time.monotonic() + self.throughput.seconds(self._per_device(self._slots + 1)) > deadline:
            raise QueueFull(
                f"{self._slots} images are in progress, and this one would not be answered before its deadline; "
                "try again after the time in Retry-After, or allow more with X-Request-Timeout-Ms.",
                retry_after=self.retry_after,
            )

    async def _feed(self, worker: Worker) -> None:
        limit = BatchSizeLimit(self._limits.max_batch)  # one for each device, since each has its own memory
        while self._alive:
            batch = self.queue.next_batch(limit.size, self._limits.max_batch_pixels)
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._run_batch(worker, limit, batch)
            except WorkerFailed as death:
                worker.give_up(str(death))  # its thread may still be about to end
                self._fail(batch)
            except Exception:  # a bug of this service: end the process rather than leave requests without a result
                log.exception("the queue has failed")
                worker.give_up("The queue has failed.")
                self._fail(batch)
        self._end()

    async def _run_batch(self, worker: Worker, limit: BatchSizeLimit, batch: list[Task]) -> None:
        started = time.monotonic()
        self._observe(batch)
        self.throughput.batch_started()
        report = await worker.run(batch)
        self.throughput.batch_finished(len(batch), time.monotonic() - started)
        self._adjust_limit(report, limit, len(batch))
        for task, outcome in zip(batch, report.outcomes, strict=True):
            if task.result.done():  # its deadline passed, or its client disconnected, while it was on the device
                continue
            if isinstance(outcome, ServiceError):
                task.result.set_exception(outcome)
            else:
                task.result.set_result(outcome)

    def _observe(self, batch: list[Task]) -> None:
        height, width = batch[0].canvas
        padded = len(batch) * height * width
        self._metrics.batch_size.observe(len(batch))
        used = sum(min(task.image_pixels, height * width) for task in batch)
        self._metrics.canvas_padding_ratio.observe(1 - used / padded)

    def _adjust_limit(self, report: BatchReport, limit: BatchSizeLimit, size: int) -> None:
        for kind in report.failures:
            self._metrics.batch_failures.labels(kind).inc()
        if report.out_of_memory_at is not None:
            limit.ran_out_of_memory(report.out_of_memory_at)
        else:
            limit.succeeded(size)

    def _end(self) -> None:
        """Fail all waiting tasks, since a worker has failed. Only the first feeder that notices it does so."""
        if self._ended:
            return
        self._ended = True
        self._fail(self.queue.take_all())
        self._metrics.ready.set(0)
        self._wake.set()  # so that the feeders of idle devices end too
        self.on_closing()
        self.on_failure()

    @staticmethod
    def _fail(tasks: list[Task]) -> None:
        for task in tasks:
            if not task.result.done():
                task.result.set_exception(Unavailable(_FAILED, retry_after=10))
