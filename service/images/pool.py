"""The processes that decode and draw, and the line of jobs for them.

A job holds a process, and its part of the memory for all processes together, from before it is sent until the process
has replied or ended, whether or not its caller still waits. Jobs are small, as decoding is first tried, or large. Each
kind has a line, first come, first served. Large ones never have all processes nor all memory: an ordinary image waits
for other ordinary images only.

All of this runs on the event loop. Threads start and bury processes, and copy what is large.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import (
    BadImage,
    BadRequest,
    DeadlinePassed,
    ServiceError,
    StartError,
    TooLarge,
    Unavailable,
    UnsupportedImage,
)
from service.images.channel import SLOT_BYTES, ChannelClosed, close_all, map_or_copy, memory_file, write_all
from service.images.child import ImageProcess, StartProcesses
from service.images.cost import DecodeCost, draw_cost
from service.rendering.boxes import MAX_JPEG_SIDE

if TYPE_CHECKING:  # they import torch
    from model import structures
    from model.structures import ImageArray
    from service.metrics import Metrics
    from service.rendering.heatmap import HeatMap

log = logging.getLogger("frcnn.images")

Canvas = tuple[int, int]  # height and width in pixels

ALLOWANCE = DecodeCost(bytes=48 * 2**20, seconds=0.5)
"""What decoding is first tried with, beside the file, before its size is known: enough for two megapixels."""
SMALL_BYTES = ALLOWANCE.bytes + 8 * 2**20
"""The memory of a small job, its data included; large jobs leave as much free."""
_WALL_SECONDS = 60.0  # of any job
_LEAST_SECONDS = 0.25  # that a job gets although its deadline has passed: starting another process costs more
_RETRY_SECONDS = 1.0  # after a process that could not be started
_END_SECONDS = 10.0  # for the last threads
_COPY_IN_THREAD = 2**20  # bytes; copying so many takes a fifth of a millisecond

_ERRORS = {error.code: error for error in (BadImage, BadRequest, TooLarge, UnsupportedImage)}
_KILLED: Mapping[tuple[str, str], tuple[type[ServiceError], str]] = {
    ("decode", "memory"): (
        TooLarge,
        "The image takes more memory to decode than the service has for it; send a smaller one, or save it again.",
    ),
    ("decode", "processor"): (
        TooLarge,
        "The image takes more processor time to decode than one of its size may; save it again, in another format.",
    ),
    ("decode", "crash"): (BadImage, "The decoder broke down on the image's bytes; save it again, in another format."),
    ("draw", "memory"): (TooLarge, "Drawing takes more memory than the service has for it; ask for JSON."),
    ("draw", "processor"): (
        TooLarge,
        "Drawing takes more processor time than is allowed; ask for JSON, or image/jpeg.",
    ),
}
_TOO_LARGE = {
    "decode": ("Decoding the image", "send a smaller one"),
    "draw": ("Drawing on the image", "ask for JSON, or send a smaller one"),
}
_DEADLINE = {
    "decode": "The deadline passed while the image was being decoded; send a smaller one, or allow more with "
    "X-Request-Timeout-Ms.",
    "draw": "The deadline passed while the boxes were being drawn; ask for JSON, or allow more with "
    "X-Request-Timeout-Ms.",
}


class ProcessSource(Protocol):
    """Where processes come from. Both methods may block, and are called in threads."""

    def take(self) -> ImageProcess:
        """Return an idle process. Raises ``StartError``."""

    def give_back(self, process: ImageProcess) -> None:
        """Accept an idle process that is no longer used."""


class Reply(NamedTuple):
    """A reply: its message, and the result where it has one, uint8 [bytes]."""

    message: dict[str, Any]
    content: NDArray[np.uint8] | None


@dataclass(eq=False)
class _Job:
    """A job in line or in a process.

    work: ``decode`` or ``draw``. bytes: reserved. large: over what decoding is first tried with, in memory or processor
    time. deadline: monotonic seconds.
    """

    work: str
    bytes: int
    large: bool
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    timer: asyncio.TimerHandle | None = None
    killed_for: str = ""  # why the process is being killed

    def __post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.turn: asyncio.Future[ImageProcess] = loop.create_future()
        self.reply: asyncio.Future[Reply] = loop.create_future()


class ImagePool:
    """The processes of one service; ``open`` at its start, ``close`` at its end, both on its event loop."""

    def __init__(self, count: int, memory: int, metrics: Metrics, source: ProcessSource | None = None) -> None:
        """Prepare ``count`` processes; ``open`` starts them.

        memory: bytes for all jobs in progress together. source: of the processes; by default they are started.
        """
        self._count = count
        self._memory = memory
        self._killed = metrics.image_processes_killed
        self._source: ProcessSource = source or StartProcesses()
        self._idle: list[ImageProcess] = []
        self._working: dict[ImageProcess, _Job] = {}
        self._ending: dict[ImageProcess, _Job | None] = {}
        self._small: deque[_Job] = deque()
        self._large: deque[_Job] = deque()
        self._reserved = 0
        self._stalled_since: float | None = None
        self._closed = False
        self._threads: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        metrics.add_image_pool(self)

    @property
    def busy(self) -> int:
        """Return the number of processes at work."""
        return len(self._working)

    @property
    def idle(self) -> int:
        """Return the number of processes that wait for a job."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Return the number of jobs that wait for a process."""
        return len(self._small) + len(self._large)

    @property
    def waiting_seconds(self) -> float:
        """Return how long the first small job has waited, or none has been begun while some waited; 0 where none waits.

        Jobs whose deadlines are short leave the line before they have waited long: so it counts that none is begun.
        """
        now = time.monotonic()
        first = now - self._small[0].arrived if self._small else 0.0
        return max(first, now - self._stalled_since if self._stalled_since is not None else 0.0)

    @property
    def pids(self) -> list[int]:
        """Return the ids of the processes."""
        return [process.pid for process in (*self._idle, *self._working, *self._ending)]

    async def open(self) -> None:
        """Start the processes. Raises ``StartError`` with the reason of one that does not start."""
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(max(4, self._count), thread_name_prefix="frcnn-image-processes")
        starts = [self._in_thread(self._source.take) for _ in range(self._count)]
        results = await asyncio.gather(*starts, return_exceptions=True)
        for result in results:
            if isinstance(result, ImageProcess):
                self._add(result)
        for result in results:
            if isinstance(result, BaseException):
                await self.close()
                raise result

    async def close(self) -> None:
        """End the processes; jobs in progress fail. Idle processes are given back to their source."""
        if self._closed or self._threads is None:
            return
        self._closed = True
        for job in (*self._small, *self._large):
            job.turn.cancel()
        for process in list(self._working):
            process.kill()  # and its end is noticed below
        idle, self._idle = self._idle, []
        for process in idle:
            self._loop.remove_reader(process.channel.fileno())
        ends = [self._in_thread(self._source.give_back, process) for process in idle]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await asyncio.gather(*ends, return_exceptions=True)
                while self._working or self._ending or self._tasks:
                    await asyncio.sleep(0.005)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def decode(
        self,
        data: bytes,
        *,
        max_pixels: int,
        canvas_for: Callable[[int, int], Canvas] | None = None,
        canvases: Sequence[Canvas] = (),
        deadline: float,
    ) -> tuple[ImageArray, tuple[int, int]]:
        """Decode an image file; as ``decoding.decode_image``, which it raises as, but in a process.

        canvas_for: called here, where the image may be large enough for one of ``canvases``, all that it returns.
        deadline: ``time.monotonic`` seconds. Raises also ``DeadlinePassed``; ``TooLarge`` where the image needs more
        memory or processor time than there is for it; ``BadImage`` where it ends the process.
        """
        canvas: Canvas | None = None
        # The file is copied into a memory file, and again by the process.
        cost = DecodeCost(ALLOWANCE.bytes + 2 * len(data), ALLOWANCE.seconds)
        message = {"op": "decode", "max_pixels": max_pixels, "canvases": canvases if canvas_for is not None else ()}
        while True:
            reply, content = await self._run("decode", message | {"canvas": canvas}, [data], cost, deadline)
            if content is not None:
                return content.reshape(reply["rows"], reply["columns"], 3), (reply["height"], reply["width"])
            needs = reply["needs"]
            if needs["reducible"] and canvas_for is not None:
                canvas = canvas_for(needs["height"], needs["width"])
            else:  # never less than before, so that it ends
                cost = DecodeCost(max(cost.bytes, needs["bytes"]), max(cost.seconds, needs["seconds"]))

    async def draw_boxes(
        self,
        pixels: ImageArray,
        boxes: NDArray[np.float32],
        captions: Sequence[str],
        categories: Sequence[int],
        media_type: str,
        *,
        deadline: float,
    ) -> bytes:
        """Draw as ``rendering.boxes.draw_boxes``, and encode as ``media_type``, in a process.

        deadline: ``time.monotonic`` seconds. Raises ``DeadlinePassed``; ``TooLarge`` where it needs more memory or
        processor time than there is for it.
        """
        drawing = {"boxes": boxes, "captions": captions, "categories": categories}
        rest = orjson.dumps(drawing, option=orjson.OPT_SERIALIZE_NUMPY)
        return await self._draw({"op": "draw_boxes"}, pixels, [rest], media_type, deadline)

    async def draw_heat_maps(
        self, pixels: ImageArray, maps: Sequence[HeatMap | structures.HeatMap], media_type: str, *, deadline: float
    ) -> bytes:
        """Draw as ``rendering.heatmap.draw_heat_maps``, and encode as ``media_type``, in a process.

        maps: their ``values`` as tensors or in NumPy. deadline, errors: as of ``draw_boxes``.
        """
        levels = [np.ascontiguousarray(heat_map.values, np.float32) for heat_map in maps]
        heads = [
            {
                "level": heat_map.level,
                "rows": values.shape[0],
                "columns": values.shape[1],
                "origin": heat_map.origin,
                "step": heat_map.step,
            }
            for heat_map, values in zip(maps, levels, strict=True)
        ]
        message = {"op": "draw_heat_maps", "maps": heads}
        return await self._draw(message, pixels, [values.data for values in levels], media_type, deadline)

    async def _draw(
        self,
        message: dict[str, Any],
        pixels: ImageArray,
        rest: Sequence[bytes | memoryview],
        media_type: str,
        deadline: float,
    ) -> bytes:
        height, width = pixels.shape[:2]
        if media_type == "image/jpeg" and max(height, width) > MAX_JPEG_SIDE:
            raise TooLarge(
                f"The image is {width} x {height} pixels, and a JPEG has at most {MAX_JPEG_SIDE} on a side; "
                "ask for image/png or JSON."
            )
        message |= {"height": height, "width": width, "media_type": media_type}
        data = [np.ascontiguousarray(pixels).data, *rest]
        _, content = await self._run("draw", message, data, draw_cost(height, width, media_type), deadline)
        assert content is not None
        if content.nbytes > _COPY_IN_THREAD:
            return cast(bytes, await self._in_thread(content.tobytes))
        return content.tobytes()

    async def _run(
        self,
        work: str,
        message: dict[str, Any],
        data: Sequence[bytes | memoryview],
        cost: DecodeCost,
        deadline: float,
    ) -> Reply:
        """Have a process do a job, and return its reply; cancelling leaves the process to finish it."""
        data_bytes = sum(memoryview(part).nbytes for part in data)
        limit = self._memory - SMALL_BYTES
        if cost.bytes > max(limit, SMALL_BYTES):
            what, advice = _TOO_LARGE[work]
            mebibytes = f"{cost.bytes / 2**20:.0f} MiB of memory, and the limit is {limit / 2**20:.0f}"
            raise TooLarge(f"{what} would take {mebibytes}; {advice}.")
        message |= {"bytes": cost.bytes, "seconds": cost.seconds, "data_bytes": data_bytes}
        while True:
            if time.monotonic() >= deadline:
                raise DeadlinePassed(_DEADLINE[work])
            job = _Job(work, cost.bytes, cost.bytes > SMALL_BYTES or cost.seconds > ALLOWANCE.seconds, deadline)
            process = await self._take_turn(job)
            files = await self._write(process, data, data_bytes)
            if self._working.get(process) is not job:  # it has ended meanwhile
                close_all(files)
                job.reply.cancel()
                continue
            try:
                process.channel.send(message | {"slot": process.free_slot()}, files)
            except OSError:  # it has ended since it was last used
                job.reply.cancel()
                self._end(process)
                continue
            finally:
                close_all(files)
            self._set_timer(process, job)
            return await job.reply

    # ------------------------------------------------------------------------------------------------------ the lines
    async def _take_turn(self, job: _Job) -> ImageProcess:
        """Wait in line, and return a process that does nothing but this job."""
        line = self._large if job.large else self._small
        line.append(job)
        if self._stalled_since is None and not job.large:
            self._stalled_since = job.arrived
        self._begin_jobs()
        try:
            if not job.turn.done():
                async with asyncio.timeout(job.deadline - time.monotonic()):
                    return await job.turn
            return job.turn.result()
        except TimeoutError:
            self._leave(job)
            raise DeadlinePassed(
                "The deadline passed while the image was waiting to be decoded or drawn; send fewer at once, or allow "
                "more with X-Request-Timeout-Ms."
            ) from None
        except asyncio.CancelledError:
            self._leave(job)
            if self._closed:
                raise Unavailable("The service is shutting down; try again.", retry_after=5) from None
            raise

    def _leave(self, job: _Job) -> None:
        """Take a job whose caller no longer waits out of its line, or free the process that it has just got."""
        with contextlib.suppress(ValueError):
            (self._large if job.large else self._small).remove(job)
        if job.turn.done() and not job.turn.cancelled():
            self._free(job.turn.result())
        else:
            self._begin_jobs()

    def _begin_jobs(self) -> None:
        """Give processes to the jobs that may begin, of both lines the one that came first."""
        while self._idle and not self._closed:
            first = [line[0] for line in (self._small, self._large) if line]
            job = next((job for job in sorted(first, key=lambda job: job.arrived) if self._may_begin(job)), None)
            if job is None:
                break
            (self._large if job.large else self._small).popleft()
            if job.turn.done():
                continue
            process = self._idle.pop()
            self._working[process] = job
            self._reserved += job.bytes
            job.started = time.monotonic()
            job.turn.set_result(process)
            if not job.large:
                self._stalled_since = job.started if self._small else None
        if self._idle and not self._small:
            self._stalled_since = None

    def _may_begin(self, job: _Job) -> bool:
        if self._reserved + job.bytes > self._memory:
            return False
        working = [other.large for other in self._working.values()]
        if job.large:
            return working.count(True) < max(1, self._count - 1)
        # Where memory for a large job is awaited, small ones go one at a time: it fits beside one of them.
        needs_memory = bool(self._large) and self._reserved + self._large[0].bytes > self._memory
        return not needs_memory or working.count(False) == 0

    def _free(self, process: ImageProcess, last: bool = False) -> None:
        """Take a process back from its job, for the next one; the last one was its last if it has grown.

        A process that is ending is left to ``_bury``.
        """
        if process not in self._working:
            return
        job = self._working.pop(process)
        self._reserved -= job.bytes
        if job.timer is not None:
            job.timer.cancel()
        if last:
            self._end(process)
        elif self._closed:
            process.kill()
            self._end(process)
        else:
            self._idle.append(process)
        self._begin_jobs()

    # -------------------------------------------------------------------------------------------------- the exchanges
    async def _write(self, process: ImageProcess, data: Sequence[bytes | memoryview], data_bytes: int) -> list[int]:
        """Write the ``data`` of the job of ``process``, which is freed where that fails.

        Returns the descriptor of a memory file for what does not fit into the slot for it.
        """
        if data_bytes <= min(SLOT_BYTES, _COPY_IN_THREAD):
            process.write(data)
            return []
        try:
            file = memory_file()
        except OSError as error:  # no descriptors, or no memory
            self._free(process)
            raise self._no_resources(error) from None
        writing = self._loop.run_in_executor(self._threads, write_all, file, data)

        def undo(_: object) -> None:
            os.close(file)
            self._free(process)

        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            writing.add_done_callback(undo)  # the thread may still write to it
            raise
        except OSError as error:
            undo(None)
            raise self._no_resources(error) from None
        return [file]

    @staticmethod
    def _no_resources(error: OSError) -> Unavailable:
        log.error("an image could not be handed to a process", extra={"reason": str(error)})
        return Unavailable("The service has no memory or descriptors left for this image; try again.", retry_after=5)

    def _on_readable(self, process: ImageProcess) -> None:
        """Receive a reply, or notice the end of a process."""
        files: list[int] = []
        try:
            received = process.channel.receive()
            if received is None:
                return
            message, files = received
            reply = Reply(message, _content(process, message, files))
            job = self._working[process]  # KeyError: a reply to nothing
            failure = _failure(job.work, message)
        except Exception as error:  # whatever it sent, it is replaced: it would be called for the same again
            if not isinstance(error, ChannelClosed):
                log.error("an image process sent nonsense", extra={"pid": process.pid, "error": repr(error)})
                process.kill()
            self._end(process)
            return
        finally:
            close_all(files)
        if job.killed_for:  # it is dying, and the reply came just before
            self._end(process)
        else:
            self._free(process, last=bool(message.get("last")))
        if job.reply.done():  # its caller has left
            return
        if failure is not None:
            job.reply.set_exception(failure)
        else:
            job.reply.set_result(reply)

    def _set_timer(self, process: ImageProcess, job: _Job) -> None:
        now = time.monotonic()
        until = min(job.deadline, job.started + _WALL_SECONDS)
        job.timer = self._loop.call_later(max(0.0, until - now), self._on_deadline, process, job)

    def _on_deadline(self, process: ImageProcess, job: _Job) -> None:
        """Answer the caller; kill the process, but not before it had ``_LEAST_SECONDS``."""
        now = time.monotonic()
        overdue = now < job.deadline  # the job has had all the time that any job gets
        if not job.reply.done():
            job.reply.set_exception(
                _error_of_death(job.work, "processor") if overdue else DeadlinePassed(_DEADLINE[job.work])
            )
        if now < job.started + _LEAST_SECONDS:
            job.timer = self._loop.call_later(job.started + _LEAST_SECONDS - now, self._on_deadline, process, job)
            return
        job.timer = None
        job.killed_for = "processor" if overdue else "deadline"
        process.kill()

    # -------------------------------------------------------------------------------------------------- the processes
    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._threads, work, *arguments)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _add(self, process: ImageProcess) -> None:
        self._loop.add_reader(process.channel.fileno(), self._on_readable, process)
        self._idle.append(process)

    def _end(self, process: ImageProcess) -> None:
        """Bury a process that has ended or will end, and start another in its place; once for each."""
        if process in self._ending:
            return
        self._loop.remove_reader(process.channel.fileno())
        if process in self._idle:
            self._idle.remove(process)
        job = self._ending[process] = self._working.pop(process, None)
        if job is not None and job.timer is not None:
            job.timer.cancel()
        self._spawn(self._bury(process))

    async def _bury(self, process: ImageProcess) -> None:
        code = await self._in_thread(process.wait)
        job = self._ending.pop(process)
        if job is not None:
            self._reserved -= job.bytes
        if not self._closed:
            reason = (job.killed_for if job is not None else "") or _reason(code)
            if reason:
                self._killed.labels(reason).inc()
                log.warning("an image process was killed", extra={"pid": process.pid, "reason": reason, "code": code})
            self._spawn(self._replace())
            self._begin_jobs()
        else:
            reason = ""
        if job is not None and not job.reply.done():
            job.reply.set_exception(_error_of_death(job.work, reason))

    async def _replace(self) -> None:
        """Start a process in the place of one that has ended; try again until it starts."""
        while True:
            try:
                process = await self._in_thread(self._source.take)
            except StartError as error:
                if self._closed:
                    return
                log.error("an image process could not be started", extra={"reason": str(error)})
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if self._closed:
                await self._in_thread(self._source.give_back, process)
                return
            self._add(process)
            self._begin_jobs()
            return


def _content(process: ImageProcess, message: Mapping[str, Any], files: Sequence[int]) -> NDArray[np.uint8] | None:
    """Return the result that a reply brings, uint8 [bytes]. Raises ``KeyError``, ``ValueError`` for nonsense."""
    if "rows" not in message and "bytes" not in message:
        return None
    count = message["bytes"] if "bytes" in message else message["rows"] * message["columns"] * 3
    if not isinstance(count, int) or count < 1:
        raise ValueError("A result with an impossible size.")
    if files:
        return np.frombuffer(map_or_copy(files[0], count), np.uint8)
    if count > SLOT_BYTES:
        raise ValueError("A result that fits into no slot.")
    if "slot" in message:
        return process.pixels(message["slot"], count)
    return np.frombuffer(process.read(count), np.uint8)


def _failure(work: str, message: Mapping[str, Any]) -> ServiceError | None:
    """Return the failure that a reply reports."""
    if "error" in message:
        return _ERRORS[message["error"]](message["detail"])
    if "failure" not in message:
        return None
    if message["failure"] == "memory":
        return _error_of_death(work, "memory")
    log.error("an image process failed", extra={"work": work, "failure": message["failure"]})
    return _error_of_death(work, "crash")


def _error_of_death(work: str, reason: str) -> ServiceError:
    """Return what a caller is told whose process has ended for ``reason``."""
    if (work, reason) in _KILLED:
        error, detail = _KILLED[work, reason]
        return error(detail)
    return Unavailable("The process that worked on the image has ended; try again.", retry_after=1)


def _reason(code: int) -> str:
    """Return why a process ended that nobody here killed: a label of the metric; empty where it ended by itself."""
    if code == 0:
        return ""
    if code == -signal.SIGXCPU:
        return "processor"
    if code == -signal.SIGKILL:  # by the kernel, for lack of memory
        return "memory"
    return "crash"
