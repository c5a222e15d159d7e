"""Seconds of `benchmarks.serving.fuzz`: random files for the decoding processes, random bytes for the HTTP front.

For longer: `python -m benchmarks.serving.fuzz images --seconds 600` and `... fuzz http --seconds 600`.
"""

import asyncio
import time

from benchmarks.serving.fuzz import MAX_PIXELS, PATHS, fuzz_http, fuzz_images
from service.images.pool import ImagePool
from service.metrics import Metrics
from service.server.http_protocol import LimitedHttpProtocol
from tests.service.conftest import FaultyDetector, serving
from tests.service.exchange import address
from tests.service.image_processes import IMAGE_PROCESSES

# This detector has no trace of its proposals.
DETECTED = [path for path in PATHS if not path.startswith((b"/proposals", b"/explain"))]


def test_mutated_files_end_as_images_or_problems() -> None:
    async def fuzz():
        pool = ImagePool(2, 512 * 2**20, Metrics(), IMAGE_PROCESSES)
        await pool.open()

        async def decode(data):
            return await pool.decode(data, max_pixels=MAX_PIXELS, deadline=time.monotonic() + 30)

        try:
            return await fuzz_images(decode, cases=700, seed=17, seconds=20)
        finally:
            await pool.close()

    report = asyncio.run(fuzz())
    assert report.failures == []
    assert report.outcomes["image"] > 20
    assert report.outcomes["400"] > 20


def test_random_requests_get_answers_or_the_end_of_the_connection(monkeypatch) -> None:
    monkeypatch.setattr(LimitedHttpProtocol, "HEAD_SECONDS", 0.3)
    settings = {"deepstack": True, "huggingface": True, "open_inference": True, "body_seconds": 0.3}
    with serving(lambda _: FaultyDetector(), **settings) as live:
        report = asyncio.run(fuzz_http(address(live), cases=200, seed=17, seconds=20, patience=30, paths=DETECTED))
    assert report.failures == []
    assert report.outcomes["200"] > 10
    assert report.outcomes["400"] > 20
