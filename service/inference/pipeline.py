"""The way of a picture through the service: envelope -> decode -> queue -> device -> answer.

Routes call this; nothing here knows of a route. One ``Pipeline`` an app.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request

from model.runtime.malloc import RELEASE_SECONDS, release_free_memory
from model.structures import DetectOptions, DetectorInfo
from service.api.auth import KeyRing
from service.api.request import Upload, is_raw, open_envelope, read_body
from service.api.responses import Seen
from service.api.schemas import check_inside
from service.errors import ClientGone, DeadlinePassed, SlowBody
from service.inference.batcher import Batcher, Limits
from service.inference.budget import Budget
from service.inference.decoding import read
from service.inference.threads import cores, decoding
from service.inference.worker import Detects, Worker
from service.metrics import Metrics
from service.settings import Settings

T = TypeVar("T")

_LAST_BATCH = 10.0  # seconds, at the end, for a batch that nobody waits for any more


@dataclass(frozen=True)
class Visit:
    """A request whose body is here. deadline and began (when the body was all here): ``time.monotonic`` seconds."""

    request: Request
    upload: Upload
    deadline: float
    began: float


class Pipeline:
    """Owns the queue, the threads that decode, and the workers; ``open`` at the app's start, ``close`` at its end."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[Settings], Detects],
        metrics: Metrics,
        devices: Callable[[str], Sequence[str]],
    ) -> None:
        """load: makes a detector on the settings' device, in its worker's thread. devices: those that a device
        setting means, each to have a worker; asked once, in a thread.
        """
        self.settings = settings
        self.metrics = metrics
        self.keys = KeyRing(settings.api_keys_file, settings.max_inflight_per_key) if settings.api_keys_file else None
        self._load = load
        self._devices = devices
        self.workers: list[Worker] = []
        limits = Limits(settings.max_batch, settings.max_batch_pixels, settings.max_queue, settings.max_queue_pixels)
        self.batcher = Batcher(self.workers, limits, metrics)
        self.bodies = Budget(settings.max_bodies_bytes, lambda: self.batcher.retry_after)
        self._running: list[asyncio.Task[None]] = []

    @property
    def info(self) -> DetectorInfo:
        """What is being served, one for each device's detector."""
        infos = self.infos
        return infos[0] if len(infos) == 1 else replace(infos[0], device=", ".join(info.device for info in infos))

    @property
    def infos(self) -> list[DetectorInfo]:
        """The same of each device alone."""
        return [worker.detector.info for worker in self.workers]

    @property
    def worker(self) -> Worker:
        """The first: it speaks for all where they are alike."""
        return self.workers[0]

    @property
    def dead(self) -> str | None:
        """Why batches cannot be run by one of the workers; None where all can."""
        if not self.workers:
            return "The detector is not loaded yet."
        return next(
            (worker.dead or "The worker thread has ended." for worker in self.workers if not worker.alive), None
        )

    async def open(self) -> None:
        """Load a detector on each device, warm it up, and begin to serve; raises what a detector raises."""
        for device in await asyncio.to_thread(self._devices, self.settings.device):
            theirs = self.settings.model_copy(update={"device": device})
            self.workers.append(Worker(partial(self._load, theirs), self.settings.watchdog_seconds))
            # In turn: the weights of one at a time are in the host's memory.
            await self.workers[-1].start()
        decoders = self.settings.decode_threads or decoding(cores(), self.info.device)
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="frcnn-decode")
        self.metrics.describe(lambda: self.infos)
        self.metrics.ready.set(1)
        self._running = [
            asyncio.create_task(self.batcher.run(), name="frcnn-batcher"),
            asyncio.create_task(_release_memory(), name="frcnn-release-memory"),
        ]

    async def drain(self) -> None:
        """Refuse new requests, and return when the accepted ones have their results."""
        self.metrics.ready.set(0)
        await self.batcher.drain()

    async def close(self) -> None:
        """Drain within the grace period, then let go of the threads."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_seconds):
                await self.drain()
        for task in self._running:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(worker.stop(_LAST_BATCH) for worker in self.workers))
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def receive(self, request: Request, timeout_ms: int | None) -> Visit:
        """Refuse what can be refused early, then read the body and open it."""
        deadline = request.scope["arrived"] + (timeout_ms or self.settings.timeout_ms) / 1000
        held: contextlib.ExitStack = request.scope["held"]
        if self.keys is not None:
            held.enter_context(self.keys.seat(self.keys.check(request)))
        self.batcher.check_open(deadline)
        take = held.enter_context(self.bodies.tab())
        async with _until(deadline, "while the body was arriving; send it faster"):
            try:
                async with asyncio.timeout(self.settings.body_seconds):
                    body = await read_body(request, self.settings.max_body_bytes, take)
            except TimeoutError:
                raise SlowBody(
                    f"The body took over {self.settings.body_seconds:g} s to arrive; send it faster, or a smaller one."
                ) from None
            began = time.monotonic()
            kind = request.headers.get("content-type", "")
            # A raw picture is there already; a thread would only be another wait.
            upload = Upload((body,)) if is_raw(kind) else await self.in_thread(open_envelope, body, kind)
        return Visit(request, upload, deadline, began)

    async def attend(self, visit: Visit, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do ``work`` for an accepted request, which a drain waits for, while its client is there.

        Raises ``Unavailable`` where it cannot be accepted, ``ClientGone``, and what ``work`` raises.
        """
        with self.batcher.visit():
            return await _unless_gone(visit.request, work())

    async def look(
        self,
        visit: Visit,
        picture: bytes,
        options: DetectOptions,
        *,
        whole: bool = False,
        check: Callable[[int, int], object] | None = None,
    ) -> Seen:
        """Decode ``picture``, queue it, and bring back what was found; inside ``attend``. Raises a ``ServiceError``.

        check: told the picture's width and height before it is queued; it may raise, and nothing is run in vain.
        whole: the caller shows the picture, and so needs all its pixels. Exact canvases are for those who compare with
        torchvision, which sees them all too.
        """
        began = visit.began
        canvas = None if whole or not self.info.canvases else self.worker.detector.canvas_for
        with self.batcher.place(visit.deadline):
            async with _until(visit.deadline, "while the picture was being decoded; send a smaller one"):
                seen = await self.in_thread(lambda: read(picture, max_pixels=self.settings.max_pixels, canvas=canvas))
            check_inside(options.regions or (), seen.width, seen.height)
            if check is not None:
                check(seen.width, seen.height)
            decoded = time.monotonic()
            options = replace(options, full_size=(seen.height, seen.width))
            result = await self.batcher.submit(seen.pixels, options, visit.deadline)
        # Each stage begins where the one before it ends, so that together they are the whole.
        seconds = {"decode": decoded - began, "queue": result.started - decoded, **result.detections.timings}
        between = result.finished - result.started - sum(result.detections.timings.values())
        seconds["postprocess"] = seconds.get("postprocess", 0.0) + max(0.0, between)  # what the detector did not lap
        return Seen(seen, result.detections, seconds, began)

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run blocking work on a picture in the decoding threads; work that has not begun is dropped when cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


async def _release_memory() -> None:
    """Give free memory back to the kernel at intervals, for as long as the app lives."""
    while True:
        await asyncio.sleep(RELEASE_SECONDS)
        await asyncio.to_thread(release_free_memory)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` while the client is there; raises ``ClientGone`` and cancels it when the client hangs up.

    The request's body must have been read: only then is the next message from the client its leaving.
    """
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone("The client hung up before its answer.")
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@contextlib.asynccontextmanager
async def _until(deadline: float, doing: str) -> Any:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except TimeoutError:
        raise DeadlinePassed(f"The deadline passed {doing}, or allow more with X-Request-Timeout-Ms.") from None
