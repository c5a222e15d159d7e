"""The process that decodes and draws: its limits, and what it is not."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.images.channel import Channel, memory_file
from service.images.child import ImageProcess
from tests.service.image_processes import IMAGE_PROCESSES

MIB = 2**20


@pytest.fixture
def process() -> Iterator[ImageProcess]:
    """Return a process that only this test uses, on a socket that blocks."""
    process = IMAGE_PROCESSES.take()
    process.channel.socket.settimeout(30)
    yield process
    process.channel.socket.setblocking(False)
    IMAGE_PROCESSES.give_back(process)


def exchange(channel: Channel, job: dict[str, object], files: list[int] = ()) -> dict[str, object]:  # type: ignore[assignment]
    channel.send({"bytes": 32 * MIB, "seconds": 0.5, "slot": None, "canvas": None, "canvases": []} | job, files)
    received = channel.receive()
    assert received is not None
    for number in received[1]:
        os.close(number)
    return received[0]


def limits(process: ImageProcess) -> dict[str, int]:
    """Return the soft limits of a process by name."""
    lines = Path(f"/proc/{process.pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): int(line[26:].split()[0]) for line in lines if line[26:].split()[0].isdigit()}


def test_it_does_not_import_torch(process):
    assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()


def test_the_kernel_ends_it_rather_than_its_parent_and_writes_no_core(process):
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
    assert limits(process)["Max core file size"] == 0


def test_memory_and_processor_time_are_limited_anew_for_each_job(process, encoded):
    data = encoded()
    process.write([data])
    job = {"op": "decode", "max_pixels": 1000_000, "data_bytes": len(data)}
    for bytes_, seconds in ((300 * MIB, 9.0), (50 * MIB, 1.0)):
        assert exchange(process.channel, job | {"bytes": bytes_, "seconds": seconds})["rows"] == 32
        now = limits(process)
        size = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        assert bytes_ <= now["Max address space"] - size < bytes_ + 100 * MIB
        assert 3 * seconds + 2 <= now["Max cpu time"] < 3 * seconds + 2 + 60  # of all its jobs together


def test_a_job_over_its_memory_is_reported_and_the_next_is_done(process, encoded):
    side = 5000
    pixels, rest = side * side * 3, b'{"boxes":[],"captions":[],"categories":[]}'
    file = memory_file(pixels)
    os.pwrite(file, rest, pixels)
    job = {"op": "draw_boxes", "height": side, "width": side, "media_type": "image/png", "bytes": 0}
    assert exchange(process.channel, job | {"data_bytes": pixels + len(rest)}, [file])["failure"] == "memory"
    os.close(file)
    data = encoded()
    process.write([data])
    reply = exchange(process.channel, {"op": "decode", "max_pixels": 1000_000, "data_bytes": len(data)})
    assert (reply["rows"], reply["columns"]) == (32, 48)


def test_an_image_that_needs_more_than_is_allowed_is_not_tried(process, encoded):
    data = encoded((3000, 2000))
    process.write([data])
    reply = exchange(process.channel, {"op": "decode", "max_pixels": 10_000_000, "data_bytes": len(data)})
    needs = reply["needs"]
    assert (needs["height"], needs["width"], needs["reducible"]) == (2000, 3000, False)
    assert needs["bytes"] > 3000 * 2000 * 3


def test_a_jpeg_that_may_be_reduced_is_asked_about(process, encoded):
    data = encoded((640, 480), format="JPEG")
    process.write([data])
    job = {"op": "decode", "max_pixels": 10_000_000, "data_bytes": len(data)}
    assert "rows" in exchange(process.channel, job | {"canvases": [[320, 512], [512, 320]]})
    assert exchange(process.channel, job | {"canvases": [[320, 512], [240, 320]]})["needs"]["reducible"]
    assert exchange(process.channel, job | {"canvas": [240, 320]})["rows"] == 240


def test_an_error_says_what_it_is(process):
    process.write([b"no image"])
    reply = exchange(process.channel, {"op": "decode", "max_pixels": 1000, "data_bytes": 8})
    assert reply["error"] == "unsupported_image"
    assert "JPEG" in reply["detail"]


def test_sigterm_and_ctrl_c_are_left_to_its_parent(process, encoded):
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    assert os.getsid(process.pid) == process.pid
    process.write([encoded()])
    reply = exchange(process.channel, {"op": "decode", "max_pixels": 10_000, "data_bytes": len(encoded())})
    assert reply["rows"] == 32


def test_pixels_are_written_into_the_slot_of_the_job(process, encoded):
    process.write([encoded()])
    slot = process.free_slot()
    job = {"op": "decode", "max_pixels": 10_000, "data_bytes": len(encoded()), "slot": slot}
    assert exchange(process.channel, job)["slot"] == slot
    pixels = process.pixels(slot, 32 * 48 * 3)
    assert (pixels.reshape(-1, 3) == (200, 30, 30)).all()
    assert np.shares_memory(pixels, pixels[3:])


def test_it_ends_when_its_socket_is_closed():
    process = ImageProcess.start()
    process.channel.close()
    begun = time.monotonic()
    assert process.wait() == 0
    assert time.monotonic() - begun < 9  # it was not killed
