"""Decode and draw in a process of its own: ``python -m service.images.process``, with a socket as standard input.

The process does one job after the other, and keeps nothing between them. A job is a message, and its data; the reply is
a message, and the result. The first message brings the slots that the process shares with its parent. Data that fits
is in the first slot, and so is an encoded drawing; pixels that fit are in the slot that the job names. What does not
fit, or has no slot, is in a memory file that comes with the message.

    {"op": "decode", "max_pixels", "canvas", "canvases", "slot", limits}          the image file
      -> {"height", "width", "rows", "columns", "slot"}                           uint8 [rows, columns, 3]
      -> {"needs": {"height", "width", "reducible", "bytes", "seconds"}}          not tried: it is over the limits
    {"op": "draw_boxes", "height", "width", "media_type", limits}                 pixels, then the boxes in JSON
    {"op": "draw_heat_maps", ..., "maps": [{"level", "rows", "columns", ...}]}    pixels, then each map's float32 values
      -> {"bytes"}                                                                the encoded drawing
    any -> {"error": code, "detail": text}                                        a ``ServiceError``
    any -> {"failure": text}                                                      "memory", or an unexpected exception

limits: "bytes", "seconds" and "data_bytes". They are what the job is estimated to need, and the process enforces them
on itself: address space by MemoryError, processor time by SIGXCPU, which ends it. The process also ends when the
socket is closed, which happens when its parent ends in whatever way.

It imports neither torch nor anything of HTTP: it must start fast and be small.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from service.errors import ServiceError
from service.images.channel import (
    SLOT_BYTES,
    SLOTS,
    Channel,
    ChannelClosed,
    close_all,
    memory_file,
    seal,
    write_all,
)
from service.images.decoding import open_image, prepare_pillow
from service.rendering.boxes import draw_boxes, encode
from service.rendering.heatmap import HeatMap, draw_heat_maps

# Address space that a job may take beyond its estimate: malloc's heap, libraries' tables, the data in Python's bytes.
_SLACK_BYTES = 64 * 2**20
# Processor time that a job may take: three times its estimate, and one to two seconds: the kernel counts whole seconds.
_SLACK_SECONDS, _SLACK_FACTOR = 1, 3
# A process whose own memory has grown by more than this is replaced: a library leaks, or its heap has gaps.
_GROWTH_BYTES = 128 * 2**20
# Limits of memory are rounded up to this, so that jobs of the same kind have the same limit, which is then set once for
# this many of them: reading the size of a process takes as long as all else that a job needs beside its decoding.
_STEP_BYTES, _MEASURE_EVERY = 16 * 2**20, 16

Reply = tuple[dict[str, Any], list[int]]


class Limits:
    """The limits of this process's memory and processor time, set anew for each job."""

    def __init__(self) -> None:
        try:
            self._statm: int | None = os.open("/proc/self/statm", os.O_RDONLY)  # read at each job
        except OSError:  # macOS, which does not enforce limits of address space either
            self._statm = None
        self._page = resource.getpagesize()
        self._started_with = self._memory()[1]
        self._allowed = self._processor = self._jobs = 0
        self._has_grown = False

    def set(self, memory: int, seconds: float) -> bool:
        """Allow ``memory`` bytes more of address space, and about ``seconds`` more of processor time.

        Returns whether this process keeps much more memory of its own than when it started.
        """
        processor = int(time.process_time() + _SLACK_SECONDS + _SLACK_FACTOR * seconds) + 1
        if processor != self._processor:
            resource.setrlimit(resource.RLIMIT_CPU, (processor, resource.RLIM_INFINITY))
            self._processor = processor
        allowed = -(-memory // _STEP_BYTES) * _STEP_BYTES
        if allowed != self._allowed or self._jobs % _MEASURE_EVERY == 0:  # jobs alike leave the size as it is
            address_space, resident = self._memory()
            if address_space:
                limit = address_space + allowed + _SLACK_BYTES
                resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            self._allowed = allowed
            self._has_grown = resident - self._started_with > _GROWTH_BYTES
        self._jobs += 1
        return self._has_grown

    def _memory(self) -> tuple[int, int]:
        """Return the bytes of address space, and those resident that no other process shares; 0 where unknown."""
        if self._statm is None:
            return 0, 0
        size, resident, shared = map(int, os.pread(self._statm, 128, 0).split()[:3])
        return size * self._page, (resident - shared) * self._page


def serve(channel: Channel) -> None:
    """Do jobs until the other end of ``channel`` is closed, or this process has grown."""
    first = channel.receive()
    assert first is not None  # the socket blocks
    _, (slots,) = first
    shared = mmap.mmap(slots, SLOTS * SLOT_BYTES)
    os.close(slots)
    limits = Limits()
    channel.send({"ready": True})
    while True:
        try:
            received = channel.receive()
        except ChannelClosed:
            return
        assert received is not None
        job, files = received
        try:
            last = limits.set(job["bytes"] + job["data_bytes"], job["seconds"])
            reply, result = _do(job, files, shared)
        finally:
            close_all(files)
        try:
            channel.send(reply | {"last": last}, result)
        finally:
            close_all(result)
        if last:
            return


def _do(job: Mapping[str, Any], files: list[int], shared: mmap.mmap) -> Reply:
    """Return the reply to a job, and the descriptors that go with it."""
    try:
        return _JOBS[job["op"]](job, files[0] if files else None, shared)
    except ServiceError as error:
        return {"error": error.code, "detail": error.detail}, []
    except MemoryError:
        return {"failure": "memory"}, []
    except Exception as error:
        if isinstance(error, OSError) and str(error).startswith("out of memory"):  # of Pillow's encoders
            return {"failure": "memory"}, []
        return {"failure": f"{type(error).__name__}: {error}"[:500]}, []


def _decode(job: Mapping[str, Any], file: int | None, shared: mmap.mmap) -> Reply:
    count = job["data_bytes"]
    data = shared[:count] if file is None else os.pread(file, count, 0)
    image = open_image(data, max_pixels=job["max_pixels"])
    canvas = None if job["canvas"] is None else (job["canvas"][0], job["canvas"][1])
    cost = image.cost(canvas)
    full_size = image.decoded_size(None)
    reducible = canvas is None and any(image.decoded_size(tuple(other)) != full_size for other in job["canvases"])
    head: dict[str, Any] = {"height": image.height, "width": image.width}
    if reducible or cost.bytes > job["bytes"] or cost.seconds > job["seconds"]:
        return {"needs": head | {"reducible": reducible, "bytes": cost.bytes, "seconds": cost.seconds}}, []
    rows, columns = image.decoded_size(canvas)
    head |= {"rows": rows, "columns": columns}
    slot, size = job["slot"], rows * columns * 3
    if slot is not None and size <= SLOT_BYTES:
        pixels = np.frombuffer(shared, np.uint8, size, slot * SLOT_BYTES).reshape(rows, columns, 3)
        image.decode_into(pixels, canvas)
        return head | {"slot": slot}, []
    file = memory_file(size)
    try:
        # All of its pages at once: each would cost a page fault.
        mapping = mmap.mmap(file, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        image.decode_into(np.frombuffer(mapping, np.uint8).reshape(rows, columns, 3), canvas)
        seal(file)
    except BaseException:
        os.close(file)
        raise
    return head, [file]


def _draw_boxes(job: Mapping[str, Any], file: int | None, shared: mmap.mmap) -> Reply:
    pixels, rest = _read_pixels(job, file, shared)
    drawing = orjson.loads(rest)
    boxes = np.array(drawing["boxes"], np.float32).reshape(-1, 4)
    image = draw_boxes(pixels, boxes, drawing["captions"], drawing["categories"])
    return _encode(image, job["media_type"], shared)


def _draw_heat_maps(job: Mapping[str, Any], file: int | None, shared: mmap.mmap) -> Reply:
    pixels, rest = _read_pixels(job, file, shared)
    values, offset, maps = np.frombuffer(rest, np.float32), 0, []
    for head in job["maps"]:
        count = head["rows"] * head["columns"]
        level = values[offset : offset + count].reshape(head["rows"], head["columns"])
        maps.append(HeatMap(head["level"], level, tuple(head["origin"]), tuple(head["step"])))
        offset += count
    return _encode(draw_heat_maps(pixels, maps), job["media_type"], shared)


_JOBS: Mapping[str, Callable[[Mapping[str, Any], int | None, mmap.mmap], Reply]] = {
    "decode": _decode,
    "draw_boxes": _draw_boxes,
    "draw_heat_maps": _draw_heat_maps,
}


def _read_pixels(job: Mapping[str, Any], file: int | None, shared: mmap.mmap) -> tuple[NDArray[np.uint8], bytes]:
    """Return the pixels, uint8 [height, width, 3], and the bytes behind them."""
    size = job["height"] * job["width"] * 3
    data = shared if file is None else mmap.mmap(file, job["data_bytes"], prot=mmap.PROT_READ)
    pixels = np.frombuffer(data, np.uint8, size).reshape(job["height"], job["width"], 3)
    return pixels, data[size : job["data_bytes"]]


def _encode(image: Image.Image, media_type: str, shared: mmap.mmap) -> Reply:
    data = encode(image, media_type)
    if len(data) <= SLOT_BYTES:
        shared[: len(data)] = data
        return {"bytes": len(data)}, []
    file = memory_file()
    try:
        write_all(file, [data])
        seal(file)
    except BaseException:
        os.close(file)
        raise
    return {"bytes": len(data)}, [file]


def main() -> None:
    """Prepare this process, and serve on the socket that is its standard input."""
    for number in (signal.SIGINT, signal.SIGTERM):  # its parent, which gets them too, decides when it ends
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel ends this process rather than its parent
    prepare_pillow()
    channel = Channel(socket.socket(fileno=os.dup(0)))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    sys.stderr.flush()
    os.dup2(null, 2)  # what went before is the reason why the process did not start
    os.close(null)
    serve(channel)


if __name__ == "__main__":
    main()
