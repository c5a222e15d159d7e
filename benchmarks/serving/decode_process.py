"""Compare decoding in a process of its own with decoding in a thread: a JPEG of 640 x 480, as most requests bring.

    python -m benchmarks.serving.decode_process --rounds 500

In turn, from one event loop: in a process, in a thread with the same decoder, and in a thread with Pillow, as services
usually do. Idle, and while a detector runs in another thread of the same process, as the service's worker does. A
thread waits for Python's lock then, and a process does not; but a process is another that wants the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.lib import machine, results
from benchmarks.lib.images import cat, encode
from model.runtime.malloc import configure_malloc
from service.images.decoding import decode_image, prepare_pillow
from service.images.pool import ImagePool
from service.metrics import Metrics

MAX_PIXELS = 64_000_000
WARM_UP = 30


def photograph() -> bytes:
    """Return a JPEG of 640 x 480 and about 60 KB: the cat, and a little noise as of a sensor."""
    noise = np.random.default_rng(0).normal(0, 4, (480, 640, 1))
    pixels = np.asarray(cat().resize((640, 480))) + noise
    return encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), quality=84)


@contextlib.contextmanager
def detector_at_work(weights: str) -> Iterator[None]:
    """Run a detector on images of 640 x 480 in another thread, one after the other."""
    from model.detector import Detector
    from model.structures import DetectOptions

    detector = Detector.from_checkpoint(weights, device="cpu")
    image = np.asarray(cat().resize((640, 480)))
    detector.detect([image], [DetectOptions()])
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            detector.detect([image], [DetectOptions()])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def compare(data: bytes, rounds: int, pool: ImagePool, threads: ThreadPoolExecutor) -> dict[str, list[float]]:
    """Return the seconds of each decoding, by way, measured in turns."""
    loop = asyncio.get_running_loop()

    def in_thread() -> Awaitable[Any]:
        return loop.run_in_executor(threads, partial(decode_image, data, max_pixels=MAX_PIXELS))

    def in_process() -> Awaitable[Any]:
        return pool.decode(data, max_pixels=MAX_PIXELS, deadline=time.monotonic() + 60)

    def by_pillow() -> Awaitable[Any]:
        return loop.run_in_executor(threads, lambda: np.array(Image.open(io.BytesIO(data)).convert("RGB")))

    ways: dict[str, Callable[[], Awaitable[Any]]] = {
        "thread": in_thread,
        "process": in_process,
        "thread, by Pillow": by_pillow,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(WARM_UP + rounds):
        for way in ways if number % 2 else reversed(ways):
            begun = time.perf_counter()
            await ways[way]()
            if number >= WARM_UP:
                seconds[way].append(time.perf_counter() - begun)
    return seconds


async def measure(rounds: int, weights: str) -> dict[str, Any]:
    """Return the rows of the table."""
    configure_malloc()  # as the server does
    prepare_pillow()
    data = photograph()
    pool = ImagePool(2, 512 * 2**20, Metrics())
    await pool.open()
    rows = []
    with ThreadPoolExecutor(2) as threads:
        for load in ("idle", "detector at work"):
            with detector_at_work(weights) if load != "idle" else contextlib.nullcontext():
                seconds = await compare(data, rounds, pool, threads)
            rows += [
                {
                    "load": load,
                    "way": way,
                    "median": float(np.median(values)),
                    "p99": float(np.quantile(values, 0.99)),
                    "ratio": float(np.median(np.array(values) / np.array(seconds["thread"]))),
                }
                for way, values in seconds.items()
            ]
    await pool.close()
    return {"machine": machine.describe("cpu"), "rounds": rounds, "bytes": len(data), "weights": weights, "rows": rows}


def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return the table."""
    rows = [
        (row["load"], row["way"], f"{row['median'] * 1000:.2f}", f"{row['p99'] * 1000:.2f}", f"{row['ratio']:.2f}")
        for row in result["rows"]
    ]
    title = (
        f"Decoding a JPEG of 640 x 480 and {result['bytes'] / 1000:.0f} kB, {result['rounds']} times each way in turn. "
        f"{machine.sentence(result['machine'])}."
    )
    columns = ("load", "decoded in a", "median ms", "p99 ms", "time over the thread's, median of pairs")
    return [results.Table(title, columns, rows)]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--weights", default="lite-voc20")
    arguments = parser.parse_args()
    import uvloop  # as uvicorn uses

    result = uvloop.run(measure(arguments.rounds, arguments.weights))
    results.save("decode-process", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
