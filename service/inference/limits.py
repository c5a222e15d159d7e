"""Limits of the work in progress: waiting images and pixels, images in a batch, bytes of request bodies, deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from service.errors import DeadlinePassed, QueueFull, SlowBody


@dataclass(frozen=True)
class QueueLimits:
    """The limits of the queue and of a batch.

    max_batch, max_queue: images. max_batch_pixels: when padded. max_queue_pixels: padded or as decoded, the larger.
    """

    max_batch: int
    max_batch_pixels: int
    max_queue: int
    max_queue_pixels: int


class BatchSizeLimit:
    """The most images in a batch: ``maximum``, less for a while after the device ran out of memory."""

    PROBE_AFTER = 32  # batches of the limited size that must succeed before a larger one is tried

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._successes = 0
        self.size = maximum

    def ran_out_of_memory(self, images: int) -> None:
        """Halve the limit: a batch of ``images`` did not fit."""
        self.size = max(1, min(self.size, images // 2))
        self._successes = 0

    def succeeded(self, images: int) -> None:
        """Note a batch of ``images`` that fitted; after ``PROBE_AFTER`` full batches, allow twice as many images."""
        if self.size == self._maximum or images < self.size:
            return
        self._successes += 1
        if self._successes >= self.PROBE_AFTER:
            self.size = min(self._maximum, self.size * 2)
            self._successes = 0


class Throughput:
    """Seconds per image of a busy device: the median of the last batches, so that one slow batch does not count.

    A slow period is forgotten after three batches at the usual speed, and any period after a few seconds in which all
    devices are idle.
    """

    BATCHES = 5
    FORGET_AFTER = 5.0  # idle seconds

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds_per_image: deque[float] = deque(maxlen=self.BATCHES)
        self._running = 0
        self._idle_since: float | None = None

    def batch_started(self) -> None:
        """Note that a batch goes to a device."""
        if self._expired():
            self._seconds_per_image.clear()
        self._running += 1
        self._idle_since = None

    def batch_finished(self, images: int, seconds: float) -> None:
        """Note that a batch of ``images`` took ``seconds``."""
        self._seconds_per_image.append(seconds / images)
        self._running -= 1
        if not self._running:
            self._idle_since = self._clock()

    def seconds(self, images: int) -> float:
        """Estimate the seconds that one device needs for ``images``; 0 where nothing is known."""
        if not self._seconds_per_image or self._expired():
            return 0.0
        return images * statistics.median(self._seconds_per_image)

    def retry_after(self, images: int) -> int:
        """Return the estimate for ``images`` as a ``Retry-After`` header: whole seconds, 1 to 60."""
        return min(60, max(1, math.ceil(self.seconds(images))))

    def _expired(self) -> bool:
        return self._idle_since is not None and self._clock() - self._idle_since > self.FORGET_AFTER


class Budget:
    """Count the bytes of all request bodies in memory, against one limit.

    An image gets its slot in the queue only once its body is here, so without this limit the bodies that are still
    arriving would be bounded by nothing but the number of connections.
    """

    def __init__(self, limit: int, retry_after: Callable[[], int]) -> None:
        self._limit = limit
        self._retry_after = retry_after
        self.reserved = 0

    @contextlib.contextmanager
    def reserve(self) -> Iterator[Callable[[int], None]]:
        """Yield ``take(count)``, which reserves ``count`` more bytes; all of them are released at the end.

        ``take`` raises ``QueueFull`` over the limit, except for a body that is the only one.
        """
        body_bytes = 0

        def take(count: int) -> None:
            nonlocal body_bytes
            if self.reserved + count > self._limit and self.reserved > body_bytes:
                raise QueueFull(
                    "The bodies of other requests fill the memory set aside for them; "
                    "try again after the time in Retry-After.",
                    retry_after=self._retry_after(),
                )
            body_bytes += count
            self.reserved += count

        try:
            yield take
        finally:
            self.reserved -= body_bytes


class ArrivingBody:
    """The body of an admitted request, until all of it is here. began: ``time.monotonic`` seconds."""

    def __init__(self, end: Callable[[ArrivingBody], None]) -> None:
        self.began = time.monotonic()
        self._end = end
        self._given_up = False
        self._timeout: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[None]:
        """Read the body in the block. Raises ``SlowBody`` where it is given up meanwhile."""
        try:
            async with asyncio.timeout(0 if self._given_up else None) as self._timeout:
                yield
        except TimeoutError:
            if not self._given_up:
                raise
            raise SlowBody("Of the many bodies that are arriving this one was the slowest; send it faster.") from None
        finally:
            self._timeout = None
            self._end(self)

    def give_up(self) -> None:
        """End its reading."""
        self._given_up = True
        if self._timeout is not None:
            self._timeout.reschedule(0)


class ArrivingBodies:
    """Bound the requests whose body is still arriving. They hold no slot of the queue, so slow ones cannot fill it.

    At the limit a new request takes the place of the one that has been arriving longest, so slow ones cannot fill this
    either. Where even that one has come within ``GRACE`` seconds, the new request is refused.
    """

    GRACE = 2.0

    def __init__(self, limit: int, retry_after: Callable[[], int]) -> None:
        self._limit = limit
        self._retry_after = retry_after
        self._bodies: dict[ArrivingBody, None] = {}  # in order; a dict, to remove from its middle

    def __len__(self) -> int:
        return len(self._bodies)

    @contextlib.contextmanager
    def track(self) -> Iterator[ArrivingBody]:
        """Count a body until it has been read, or the block ends. Raises ``QueueFull``."""
        if len(self._bodies) >= self._limit:
            slowest = next(iter(self._bodies))
            if time.monotonic() - slowest.began < self.GRACE:
                raise QueueFull(
                    f"The bodies of {len(self._bodies)} requests are arriving, which is the limit; "
                    "try again after the time in Retry-After.",
                    retry_after=self._retry_after(),
                )
            self._remove(slowest)
            slowest.give_up()
        body = ArrivingBody(self._remove)
        self._bodies[body] = None
        try:
            yield body
        finally:
            self._remove(body)

    def _remove(self, body: ArrivingBody) -> None:
        self._bodies.pop(body, None)


@contextlib.asynccontextmanager
async def enforce_deadline(deadline: float, activity: str) -> AsyncIterator[None]:
    """Raise ``DeadlinePassed`` where the block is not done by ``deadline`` (``time.monotonic`` seconds).

    A request's deadline is enforced here while its body is read and parsed and its response written
    (``api/handler.py``); while its image is decoded or drawn on (``images/pool.py``); while it is queued and on the
    device (``batcher.py``); and a task that is past it is left out of a batch (``queue.py``). A request that cannot be
    answered in time is refused from its head (``batcher.py``).

    activity: what was going on and what to do, for the message ("while the body was arriving; send it faster").
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except TimeoutError:
        raise DeadlinePassed(f"The deadline passed {activity}, or allow more with X-Request-Timeout-Ms.") from None
