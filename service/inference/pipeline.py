"""The steps of one image between its bytes and its result: decode -> queue -> worker. Knows nothing of HTTP.

Between the request's body and the response's bytes an image is held in four objects in turn:

    ImageRequest   the parsed body: the bytes of its images and the options beside them (``service/api/request.py``)
    Task           its entry in the queue: decoded pixels, options, and the future of its result (``queue.py``)
    Detections     what the model returns (``model/structures.py``)
    ImageResult    pixels, detections and times by stage (here)

Inside the model, between Task and Detections, an ImageBatch and then BatchDetections hold it with its batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from model.runtime.malloc import RELEASE_SECONDS, release_free_memory
from model.structures import Detections, DetectOptions, DetectorInfo, ImageArray
from service.images.pool import ImagePool, ProcessSource
from service.inference.batcher import Batcher
from service.inference.detector import DetectorLike
from service.inference.limits import QueueLimits
from service.inference.queue import Task
from service.inference.threads import available_cores, image_process_count
from service.inference.worker import Worker
from service.metrics import Metrics
from service.settings import Settings

T = TypeVar("T")

_REQUEST_THREADS = 2  # for parsing bodies and writing long responses
_LAST_BATCH_SECONDS = 10.0  # at the end, for a batch whose clients have all disconnected


@dataclass(frozen=True)
class ImageResult:
    """What the detector found in one image.

    pixels: uint8 [h, w, 3] RGB, as decoded, which may be smaller than the image. width, height: of the image as shown,
    in pixels, the frame of the detections. seconds: by stage, of ``metrics.STAGES`` all but ``serialize``. received:
    when the request's body was all here, ``time.monotonic`` seconds.
    """

    pixels: ImageArray
    width: int
    height: int
    detections: Detections
    seconds: dict[str, float]
    received: float


class Pipeline:
    """The image processes, the queue and the workers; ``open`` at the app's start, ``close`` at its end."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[Settings], DetectorLike],
        metrics: Metrics,
        devices: Callable[[str], Sequence[str]],
        image_processes: ProcessSource | None = None,
    ) -> None:
        """Prepare the pipeline; ``open`` starts it.

        load: makes a detector on the settings' device, in its worker's thread. devices: returns the devices that a
        device setting means, each of which gets a worker; called once, in a thread. image_processes: the source of the
        processes that decode and draw; None starts them.
        """
        self.settings = settings
        self.metrics = metrics
        self._load = load
        self._devices = devices
        self._image_processes = image_processes
        self.images: ImagePool  # from ``open`` on
        self._threads = ThreadPoolExecutor(_REQUEST_THREADS, thread_name_prefix="frcnn-request")
        self.workers: list[Worker] = []
        limits = QueueLimits(
            settings.max_batch, settings.max_batch_pixels, settings.max_queue, settings.max_queue_pixels
        )
        self.batcher = Batcher(self.workers, limits, metrics)
        self._running: list[asyncio.Task[None]] = []

    @property
    def info(self) -> DetectorInfo:
        """Return the description of the detector that is served; ``device`` names all devices."""
        infos = self.infos
        return infos[0] if len(infos) == 1 else replace(infos[0], device=", ".join(info.device for info in infos))

    @property
    def infos(self) -> list[DetectorInfo]:
        """Return the description of each device's detector."""
        return [worker.detector.info for worker in self.workers]

    @property
    def worker(self) -> Worker:
        """Return the first worker; in what the detectors have in common it stands for all."""
        return self.workers[0]

    @property
    def failure_reason(self) -> str | None:
        """Return why one of the workers cannot run batches; None where all can."""
        if not self.workers:
            return "The detector is not loaded yet."
        return next(
            (worker.failure_reason or "The worker thread has ended." for worker in self.workers if not worker.alive),
            None,
        )

    async def open(self) -> None:
        """Load a detector on each device, warm it up, start the image processes, and begin to serve.

        Raises what a detector raises, and ``StartError`` where a process does not start.
        """
        devices = await asyncio.to_thread(self._devices, self.settings.device)
        settings = self.settings
        count = settings.image_processes or image_process_count(available_cores(), devices[0])
        self.images = ImagePool(count, settings.image_memory_bytes, self.metrics, self._image_processes)
        opening = asyncio.create_task(self.images.open(), name="frcnn-image-processes")  # while the detectors load
        try:
            for device in devices:
                settings = self.settings.model_copy(update={"device": device})
                self.workers.append(Worker(partial(self._load, settings), self.settings.watchdog_seconds))
                # One after the other: the weights of one detector at a time are in the host's memory.
                await self.workers[-1].start()
        except BaseException:
            await asyncio.gather(opening, return_exceptions=True)
            await self.images.close()
            raise
        try:
            await opening
        except BaseException:
            await asyncio.gather(*(worker.stop(_LAST_BATCH_SECONDS) for worker in self.workers))
            raise
        self.metrics.add_detectors(lambda: self.infos)
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
        """Drain within the grace period, then end the threads."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_seconds):
                await self.drain()
        for task in self._running:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(worker.stop(_LAST_BATCH_SECONDS) for worker in self.workers), self.images.close())
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def infer(
        self,
        image: bytes,
        options: DetectOptions,
        *,
        deadline: float,
        received: float,
        keep: contextlib.ExitStack | None = None,
        check_size: Callable[[int, int], None] = lambda width, height: None,
    ) -> ImageResult:
        """Decode ``image``, queue it, and return what the detector found; call it inside ``Batcher.track_request``.

        deadline, received: ``time.monotonic`` seconds. keep: the caller shows the image, and so needs all its pixels;
        the image counts among those in progress until it closes this stack. check_size: called with the image's width
        and height before it is queued; it may raise. Raises a ``ServiceError``.
        """
        # With exact canvases every pixel is decoded: they exist for comparisons with torchvision.
        canvases = self.info.canvases
        canvas_for = None if keep is not None or not canvases else self.worker.detector.canvas_for
        max_pixels = self.settings.max_pixels
        with contextlib.nullcontext(keep) if keep is not None else contextlib.ExitStack() as reserved:
            reserved.enter_context(self.batcher.reserve_slot(deadline))
            pixels, (height, width) = await self.images.decode(
                image, max_pixels=max_pixels, canvas_for=canvas_for, canvases=canvases, deadline=deadline
            )
            check_size(width, height)
            queued = time.monotonic()
            options = replace(options, full_size=(height, width))
            canvas = self.worker.detector.canvas_for(height, width)
            task = Task(pixels, options, canvas, deadline)
            reserved.enter_context(self.batcher.reserve_pixels(task.pixels))
            detections = await self.batcher.submit(task)
        # Each stage begins where the previous one ends, so that they add up to the total.
        seconds = {"decode": queued - received, "queue": task.started - queued, **detections.timings}
        between = task.finished - task.started - sum(detections.timings.values())
        # What no stage of the model has: the work around them, and batches of the same call, those of other options.
        seconds["postprocess"] = seconds.get("postprocess", 0.0) + max(0.0, between)
        return ImageResult(pixels, width, height, detections, seconds, received)

    async def run_in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run short blocking work in a thread; cancelling drops work that has not begun."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


async def _release_memory() -> None:
    """Return free memory to the kernel every ``RELEASE_SECONDS``, until cancelled."""
    while True:
        await asyncio.sleep(RELEASE_SECONDS)
        await asyncio.to_thread(release_free_memory)
