"""The pool of processes: what it answers when one of them ends, and in which order jobs are done."""

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import uvloop

from model.structures import HeatMap
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
from service.images import pool as pool_module
from service.images.channel import SLOT_BYTES, Channel, close_all, socket_pair
from service.images.child import ImageProcess
from service.images.decoding import decode_image
from service.images.pool import SMALL_BYTES, ImagePool
from service.metrics import Metrics
from service.rendering.boxes import draw_boxes, encode
from service.rendering.heatmap import draw_heat_maps
from tests.service.image_processes import IMAGE_PROCESSES

MIB = 2**20
MAX_PIXELS = 50_000_000


@contextlib.asynccontextmanager
async def opened(count: int = 2, memory: int = 512 * MIB, source: object = IMAGE_PROCESSES) -> AsyncIterator[ImagePool]:
    metrics = Metrics()
    pool = ImagePool(count, memory, metrics, source)  # type: ignore[arg-type]
    pool.metric = lambda name, **labels: metrics.registry.get_sample_value(name, labels)  # type: ignore[attr-defined]
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def decode(pool: ImagePool, data: bytes, deadline: float | None = None) -> "asyncio.Task[object]":
    return asyncio.ensure_future(pool.decode(data, max_pixels=MAX_PIXELS, deadline=deadline or soon()))


# ------------------------------------------------------------------------------------------- with the real processes
@pytest.mark.parametrize(
    ("size", "format", "canvas"),
    [
        ((640, 480), "JPEG", None),
        ((1600, 1200), "JPEG", None),  # in no slot
        ((2400, 1600), "PNG", None),  # over what is tried at first
        ((1600, 1200), "JPEG", (320, 512)),
        ((640, 480), "PNG", (320, 512)),
    ],
)
async def test_pixels_are_those_of_decode_image(encoded, size, format, canvas):
    data = encoded(size, format=format)
    canvas_for = None if canvas is None else lambda height, width: canvas
    expected, expected_size = decode_image(data, max_pixels=MAX_PIXELS, canvas_for=canvas_for)
    async with opened() as pool:
        pixels, image_size = await pool.decode(
            data, max_pixels=MAX_PIXELS, canvas_for=canvas_for, canvases=[canvas] if canvas else [], deadline=soon()
        )
    assert image_size == expected_size
    assert np.array_equal(pixels, expected)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("data", "error"), [(b"", BadRequest), (b"text", UnsupportedImage), (b"\x89PNG\r\n\x1a\n1234", BadImage)]
)
async def test_what_is_no_image_is_an_error_of_decode_image(data, error):
    with pytest.raises(ServiceError) as expected:
        decode_image(data, max_pixels=MAX_PIXELS)
    async with opened() as pool:
        with pytest.raises(error) as raised:
            await decode(pool, data)
    assert raised.value.detail == expected.value.detail


async def test_pixels_of_an_image_stay_while_others_are_decoded(encoded):
    async with opened(1) as pool:
        images = [await decode(pool, encoded((20, 10), (number, 0, 0))) for number in range(20)]
    assert [pixels[0, 0, 0] for pixels, _ in images] == list(range(20))


@pytest.mark.parametrize("side", [100, 1040])  # in a slot, and in a file
async def test_boxes_and_heat_maps_are_drawn(side):
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    boxes, captions, classes = np.array([[1, 2, 30, 40.5], [5, 5, 9, 9]], np.float32), ["cat 0.9", ""], [1, 2]
    heat_map = HeatMap(1, np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), (4.0, 4.0), (8.0, 10.0))
    async with opened() as pool:
        drawing = await pool.draw_boxes(pixels, boxes, captions, classes, "image/png", deadline=soon())
        maps = await pool.draw_heat_maps(pixels, [heat_map, heat_map], "image/jpeg", deadline=soon())
    assert drawing == encode(draw_boxes(pixels, boxes, captions, classes), "image/png")
    assert maps == encode(draw_heat_maps(pixels, [heat_map, heat_map]), "image/jpeg")


async def test_a_side_too_long_for_a_jpeg_is_refused():
    async with opened() as pool:
        with pytest.raises(TooLarge, match="image/png"):
            await pool.draw_boxes(
                np.zeros((1, 70_000, 3), np.uint8), np.zeros((0, 4), np.float32), [], [], "image/jpeg", deadline=soon()
            )


@pytest.mark.parametrize(
    ("number", "error", "phrase", "reason"),
    [
        (signal.SIGSEGV, BadImage, "broke down on the image's bytes; save it again", "crash"),
        (signal.SIGXCPU, TooLarge, "more processor time .* save it again", "processor"),
        (signal.SIGKILL, TooLarge, "more memory .* send a smaller one", "memory"),
    ],
)
async def test_a_process_that_ends_fails_its_own_job_and_is_replaced(encoded, number, error, phrase, reason):
    async with opened() as pool:
        before = pool.pids
        for pid in before:  # whichever gets the job
            os.kill(pid, signal.SIGSTOP)
        failing = decode(pool, encoded())
        await until(lambda: pool.busy == 1)
        (idle,) = (process.pid for process in pool._idle)
        os.kill(idle, signal.SIGCONT)
        await decode(pool, encoded())  # nobody else notices
        (dying,) = set(before) - {idle}
        os.kill(dying, number)
        os.kill(dying, signal.SIGCONT)
        with pytest.raises(error, match=phrase):
            await failing
        assert pool.metric("frcnn_image_processes_killed_total", reason=reason) == 1
        await until(lambda: pool.idle == 2)
        assert dying not in pool.pids
        await asyncio.gather(*(decode(pool, encoded()) for _ in range(4)))


async def test_the_deadline_is_kept_and_the_process_that_passes_it_is_replaced(encoded):
    async with opened() as pool:
        stopped = pool.pids[0]
        os.kill(stopped, signal.SIGSTOP)
        jobs = [decode(pool, encoded(), soon(0.5)) for _ in range(2)]
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert sorted(isinstance(result, DeadlinePassed) for result in results) == [False, True]
        assert "while the image was being decoded; send a smaller one" in str(
            next(result for result in results if isinstance(result, DeadlinePassed))
        )
        await until(lambda: pool.idle == 2)
        assert stopped not in pool.pids
        assert pool.metric("frcnn_image_processes_killed_total", reason="deadline") == 1


async def test_a_job_has_a_moment_after_its_deadline_before_its_process_is_killed(encoded, monkeypatch):
    monkeypatch.setattr(pool_module, "_LEAST_SECONDS", 30.0)
    async with opened(1) as pool:
        before = pool.pids
        os.kill(before[0], signal.SIGSTOP)
        with pytest.raises(DeadlinePassed):
            await decode(pool, encoded(), soon(0.05))
        os.kill(before[0], signal.SIGCONT)
        await until(lambda: pool.idle == 1)
        assert pool.pids == before


async def test_a_client_that_leaves_costs_no_process(encoded):
    async with opened(1) as pool:
        before = pool.pids
        os.kill(before[0], signal.SIGSTOP)
        jobs = [decode(pool, encoded()) for _ in range(3)]  # one at work, two in line
        await until(lambda: pool.waiting == 2)
        for job in jobs[:2]:
            job.cancel()
        await until(lambda: pool.waiting == 1)
        os.kill(before[0], signal.SIGCONT)
        assert (await jobs[2])[1] == (32, 48)
        assert (pool.pids, pool.idle) == (before, 1)


async def test_a_process_that_ends_while_it_is_idle_is_replaced(encoded):
    async with opened(1) as pool:
        dead = pool.pids[0]
        os.kill(dead, signal.SIGKILL)
        while ") Z " not in Path(f"/proc/{dead}/stat").read_text():
            time.sleep(0.001)  # so that the event loop has not noticed it
        assert (await decode(pool, encoded()))[1] == (32, 48)
        assert dead not in pool.pids


def open_descriptors() -> int:
    """Return the number of open descriptors, without those of processes that no pool uses."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")) - 2 * len(IMAGE_PROCESSES._idle)  # the socket, and that of the slots


async def test_no_descriptor_is_left_open(encoded):
    async with opened() as pool:
        small, large = encoded(), encoded((1100, 1000), format="BMP")
        before = open_descriptors()
        for turn in range(50):
            pixels, _ = await decode(pool, large if turn % 10 == 0 else small)
            with pytest.raises(UnsupportedImage):
                await decode(pool, b"text")
            with pytest.raises(BadImage):
                await decode(pool, small[:40])
            leaving = decode(pool, large if turn % 10 == 0 else small)
            await asyncio.sleep(0)
            leaving.cancel()
            if turn % 25 == 0:
                killed = pool.pids[0]
                os.kill(killed, signal.SIGKILL)
                await until(lambda killed=killed: killed not in pool.pids)
        await until(lambda: pool.idle == 2)
        del pixels, leaving
        assert open_descriptors() == before


def test_it_works_on_any_event_loop_and_in_any_thread(encoded):
    results = []

    async def use() -> None:
        async with opened() as pool:
            results.append((await decode(pool, encoded()))[1])

    threads = [threading.Thread(target=run, args=(use(),)) for run in (asyncio.run, uvloop.run)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [(32, 48)] * 2


# --------------------------------------------------------------------------- with processes whose part the test plays
class Played(ImageProcess):
    """A process without a process: the test receives its jobs and replies."""

    def __init__(self, number: int) -> None:
        ours, theirs = socket_pair()
        ours.setblocking(False)
        theirs.settimeout(30)
        self.channel, self.child = Channel(ours), Channel(theirs)
        self.pid, self.killed = -number, False
        self._free_slots = ()  # type: ignore[assignment]
        self._data = bytearray(SLOT_BYTES)
        self._shared = self._data  # type: ignore[assignment]

    def kill(self) -> None:
        self.killed = True
        self.child.close()

    def wait(self) -> int:
        self.channel.close()
        self.child.close()
        return -signal.SIGKILL

    def job(self) -> bytes:
        """Return the data of the job that was sent, if it is small."""
        message, files = self.child.receive()  # type: ignore[misc]
        close_all(files)
        return b"" if files else bytes(self._data[: message["data_bytes"]])

    def reply(self, **message: object) -> None:
        self.child.send(message or {"error": "bad_image", "detail": "done"})

    @property
    def working(self) -> bool:
        self.child.socket.setblocking(False)
        try:
            return bool(self.child.socket.recv(10, 2))  # MSG_PEEK
        except BlockingIOError:
            return False
        finally:
            self.child.socket.settimeout(30)


class Stage:
    """The source of played processes."""

    def __init__(self) -> None:
        self.taken: list[Played] = []
        self.given_back: list[Played] = []
        self.error: StartError | None = None

    def take(self) -> Played:
        if self.error is not None:
            raise self.error
        self.taken.append(Played(len(self.taken) + 1))
        return self.taken[-1]

    def give_back(self, process: Played) -> None:
        self.given_back.append(process)
        process.wait()


@pytest.fixture
def stage() -> Stage:
    return Stage()


LARGE = b"\x89PNG" + bytes(5 * MIB)  # its data alone make a job large


def failed(task: "asyncio.Task[object]") -> bool:
    return task.done() and isinstance(task.exception(), BadImage)


async def settle() -> None:
    """Let everything happen that can happen now."""
    for _ in range(20):
        await asyncio.sleep(0.002)


async def test_large_jobs_leave_a_process_to_the_small_ones(stage):
    async with opened(3, 4096 * MIB, stage) as pool:
        large = [decode(pool, LARGE) for _ in range(3)]
        await until(lambda: pool.busy == 2)
        await settle()
        assert (pool.busy, pool.waiting) == (2, 1)
        small = decode(pool, b"small")
        await until(lambda: pool.busy == 3)
        player = next(process for process in stage.taken if process.working and process._data[:5] == b"small")
        player.job()
        player.reply()
        with pytest.raises(BadImage):
            await small
        assert not any(task.done() for task in large)
        for process in [process for process in stage.taken if process is not player]:
            process.job()
            process.reply()
        await until(lambda: sum(map(failed, large)) == 2)
        await until(lambda: any(process.working for process in stage.taken))
        await play_on(stage, large)


async def play_on(stage: Stage, tasks: "list[asyncio.Task[object]]") -> None:
    """Reply to every job until all ``tasks`` are done."""
    while not all(task.done() for task in tasks):
        for process in stage.taken:
            if not process.killed and process.working:
                process.job()
                process.reply()
        await asyncio.sleep(0.002)


async def test_a_single_process_does_large_jobs_too(stage):
    async with opened(1, source=stage) as pool:
        task = decode(pool, LARGE)
        await play_on(stage, [task])
        assert failed(task)


async def test_small_jobs_are_done_in_the_order_in_which_they_came(stage):
    async with opened(1, source=stage) as pool:
        tasks = [decode(pool, b"%d" % number) for number in range(4)]
        await until(lambda: pool.waiting == 3)
        order = []
        for _ in tasks:
            await until(lambda: stage.taken[0].working)
            order.append(stage.taken[0].job())
            stage.taken[0].reply()
        assert order == [b"0", b"1", b"2", b"3"]
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_all_jobs_together_stay_within_the_memory(stage):
    memory = 3 * SMALL_BYTES + 20 * MIB
    async with opened(4, memory, stage) as pool:
        held = [decode(pool, b"first"), decode(pool, b"second")]
        await until(lambda: pool.busy == 2)
        large = decode(pool, bytes(25 * MIB))  # 50 MiB more than a small job
        await settle()
        assert (pool.busy, pool.waiting) == (2, 1)
        small = decode(pool, b"third")
        await settle()
        assert (pool.busy, pool.waiting) == (2, 2)  # it would delay the large one for ever
        (first,) = (process for process in stage.taken if process._data[:5] == b"first")
        first.job()
        first.reply()
        await until(lambda: pool.busy == 2 and pool.waiting == 1)  # one small job and the large one
        await play_on(stage, [*held, large, small])
        assert all(map(failed, (*held, large, small)))


async def test_an_image_over_all_memory_is_refused_with_both_sizes(stage):
    async with opened(2, 128 * MIB, stage) as pool:
        with pytest.raises(TooLarge, match=r"would take 108 MiB of memory, and the limit is 72; send a smaller one"):
            await decode(pool, bytes(30 * MIB))
        task = decode(pool, b"image")
        await until(lambda: pool.busy == 1)
        player = next(process for process in stage.taken if process.working)
        player.job()
        needs = {"height": 9000, "width": 9000, "reducible": False, "bytes": 400 * MIB, "seconds": 1.0}
        player.reply(needs=needs)
        with pytest.raises(TooLarge, match=r"would take 400 MiB"):
            await task
        assert pool.idle == 2


async def test_the_wait_of_the_first_in_line_is_known(stage):
    async with opened(1, source=stage) as pool:
        first = decode(pool, b"first")
        await until(lambda: pool.busy == 1)
        assert pool.waiting_seconds == 0
        waiting = decode(pool, b"second")
        await until(lambda: pool.waiting_seconds > 0.05)
        waiting.cancel()  # as at a short deadline: still no image is decoded
        await settle()
        assert pool.waiting == 0
        assert pool.waiting_seconds > 0.05
        await play_on(stage, [first])
        assert pool.waiting_seconds == 0


async def test_the_deadline_counts_in_line_too(stage):
    async with opened(1, source=stage) as pool:
        first = decode(pool, b"first")
        with pytest.raises(DeadlinePassed, match=r"waiting to be decoded .* send fewer at once"):
            await decode(pool, b"second", soon(0.05))
        with pytest.raises(DeadlinePassed):
            await decode(pool, b"third", time.monotonic() - 1)
        assert pool.waiting == 0
        await play_on(stage, [first])


async def test_a_job_has_a_longest_time_whatever_its_deadline(stage, monkeypatch):
    monkeypatch.setattr(pool_module, "_WALL_SECONDS", 0.3)
    async with opened(1, source=stage) as pool:
        with pytest.raises(TooLarge, match="processor time"):
            await decode(pool, b"image")
        assert stage.taken[0].killed
        await until(lambda: pool.metric("frcnn_image_processes_killed_total", reason="processor") == 1)


@pytest.mark.parametrize(
    "message",
    [
        {"error": "no_such_code", "detail": ""},
        {"rows": 10**9, "columns": 10**9},
        {"rows": -1, "columns": 3},
        {"rows": 4, "columns": 4, "slot": 99},
        {"bytes": "many"},
    ],
)
async def test_a_process_that_sends_nonsense_is_replaced(stage, message):
    async with opened(1, source=stage) as pool:
        task = decode(pool, b"image")
        await until(lambda: pool.busy == 1)
        stage.taken[0].job()
        stage.taken[0].reply(**message)
        with pytest.raises(TooLarge):  # as if the kernel had killed it
            await task
        assert stage.taken[0].killed
        await until(lambda: pool.idle == 1)


async def test_a_process_that_has_grown_is_replaced_without_being_counted_as_killed(stage, monkeypatch):
    monkeypatch.setattr(Played, "wait", lambda process: (process.channel.close(), process.child.close(), 0)[2])
    async with opened(1, source=stage) as pool:
        task = decode(pool, b"image")
        await until(lambda: pool.busy == 1)
        stage.taken[0].job()
        stage.taken[0].reply(error="bad_image", detail="done", last=True)
        with pytest.raises(BadImage, match="done"):
            await task
        await until(lambda: pool.idle == 1)
        assert len(stage.taken) == 2
        reasons = ("deadline", "memory", "processor", "crash")
        assert not any(pool.metric("frcnn_image_processes_killed_total", reason=reason) for reason in reasons)


async def test_a_replacement_that_does_not_start_is_tried_again(stage, monkeypatch):
    monkeypatch.setattr(pool_module, "_RETRY_SECONDS", 0.01)
    async with opened(1, source=stage) as pool:
        stage.error = StartError("no process is left")
        stage.taken[0].kill()
        await until(lambda: pool.idle == 0 and not pool.pids)
        await settle()
        task = decode(pool, b"image")
        stage.error = None
        await until(lambda: pool.busy == 1)
        await play_on(stage, [task])
        assert failed(task)


async def test_a_pool_that_cannot_start_gives_back_what_has_started(stage):
    take, calls = stage.take, iter((True, False))

    def take_one() -> Played:
        if next(calls):
            return take()
        raise StartError("no process is left")

    stage.take = take_one
    with pytest.raises(StartError, match="no process is left"):
        async with opened(2, source=stage):
            pass
    assert stage.given_back == stage.taken


async def test_closing_ends_jobs_and_processes(stage):
    async with opened(2, source=stage) as pool:
        tasks = [decode(pool, b"image") for _ in range(4)]
        await until(lambda: pool.busy == 2)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert all(process.killed for process in stage.taken)
    assert pool.pids == []


async def test_the_metrics_count_processes_and_waiting_jobs(stage):
    async with opened(2, source=stage) as pool:
        tasks = [decode(pool, b"image") for _ in range(5)]
        await until(lambda: pool.busy == 2)
        assert pool.metric("frcnn_image_processes", state="busy") == 2
        assert pool.metric("frcnn_image_processes", state="idle") == 0
        assert pool.metric("frcnn_image_jobs_waiting") == 3
        await play_on(stage, tasks)
        assert pool.metric("frcnn_image_processes", state="idle") == 2


async def test_a_process_that_ends_while_its_job_is_written_is_replaced_and_the_job_done_by_another(
    encoded, monkeypatch
):
    async with opened(1) as pool:
        write, killed = pool._write, []

        async def write_slowly(process, data, data_bytes):
            files = await write(process, data, data_bytes)
            if not killed:
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)
                await until(lambda: process not in pool._working)
            return files

        monkeypatch.setattr(pool, "_write", write_slowly)
        pixels, size = await decode(pool, encoded((40, 30)))
        assert size == pixels.shape[:2]
        assert killed
        await until(lambda: not pool._ending)
        assert pool._reserved == 0
