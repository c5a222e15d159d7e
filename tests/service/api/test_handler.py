"""The steps of an image route: timings, several images, many clients, deadlines of what follows the detector."""

import asyncio
import dataclasses
import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from service.api.routes import explain, proposals
from service.images.pool import ImagePool
from tests.service.conftest import FaultyDetector
from tests.service.exchange import check_problem, send, wait_for

STAGES = ("decode", "queue", "transform", "backbone", "rpn", "roi_head", "postprocess", "serialize")


def test_times_by_stage_add_up_to_the_total(service, cat_jpeg):
    response = service.detect(cat_jpeg)
    timings = response.json()["timings_ms"]
    assert list(timings) == [*STAGES, "total"]
    assert sum(timings[stage] for stage in STAGES) == pytest.approx(timings["total"], rel=0.05, abs=2)
    header = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert float(header["backbone"]) == timings["backbone"]


def test_times_by_stage_add_up_to_the_total_under_load(service, encoded, cat_jpeg):
    before = {stage: service.metric("frcnn_stage_seconds_sum", stage=stage) for stage in STAGES}
    bodies = [cat_jpeg, encoded((640, 480)), encoded((90, 300))]

    def ask(number: int) -> tuple[dict[str, float], dict[str, float], float]:
        started = time.monotonic()
        route = ("/detect", "/proposals")[number % 2]
        response = httpx.post(f"{service.url}{route}", content=bodies[number % len(bodies)], timeout=120)
        elapsed = (time.monotonic() - started) * 1000
        header = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
        return response.json()["timings_ms"], {stage: float(value) for stage, value in header.items()}, elapsed

    with ThreadPoolExecutor(10) as clients:
        responses = list(clients.map(ask, range(30)))
    for timings, header, elapsed in responses:
        assert list(timings) == [*STAGES, "total"]
        assert min(timings.values()) >= 0
        assert sum(timings[stage] for stage in STAGES) == pytest.approx(timings["total"], rel=0.05, abs=2)
        assert header == timings
        assert timings["total"] <= elapsed
    counted = sum(service.metric("frcnn_stage_seconds_sum", stage=stage) - before[stage] for stage in STAGES)
    assert counted * 1000 == pytest.approx(sum(timings["total"] for timings, _, _ in responses), rel=0.05)


def test_sixteen_clients_at_once_each_get_their_own_response(service, encoded):
    def ask(width: int) -> tuple[int, int, int]:
        response = httpx.post(f"{service.url}/detect", content=encoded((width, 64)), timeout=120)
        return width, response.status_code, json.loads(response.content)["image"]["width"]

    with ThreadPoolExecutor(16) as clients:
        for width, status, response_width in clients.map(ask, range(32, 96)):
            assert (status, response_width) == (200, width)


def test_an_image_that_is_drawn_on_is_decoded_in_full(service, chelsea):
    file = io.BytesIO()
    Image.fromarray(chelsea).resize((1804, 1200)).save(file, "JPEG")
    for route in ("/detect", "/proposals"):
        drawn = service.client.post(route, content=file.getvalue(), headers={"Accept": "image/jpeg"})
        assert Image.open(io.BytesIO(drawn.content)).size == (1804, 1200)


def test_an_image_counts_among_those_in_progress_until_it_is_drawn(serve_faulty, clients, large, monkeypatch):
    begun, drawn = threading.Event(), threading.Event()

    async def draw_boxes(*_, **__):
        begun.set()
        while not drawn.is_set():
            await asyncio.sleep(0.01)
        return b"drawn"

    monkeypatch.setattr(ImagePool, "draw_boxes", draw_boxes)
    with serve_faulty(max_queue_pixels=20_000) as live:  # the canvas of one such image has 16,384
        first = send(clients, live, large, Accept="image/png")
        assert begun.wait(10)
        check_problem(live.detect(large), 429, "pixels")
        drawn.set()
        assert first.result().content == b"drawn"
        assert live.detect(large).status_code == 200


def test_a_batch_request_is_not_refused_for_having_more_images_than_the_queue(serve_faulty, small):
    with serve_faulty(max_queue=4) as live:
        results = live.client.post("/detect/batch", files=[("image", small)] * 20).json()["results"]
        assert len(results) == 20
        assert all("boxes" in result for result in results)


@pytest.fixture
def blocked_writing(monkeypatch) -> Iterator[threading.Event]:
    """Let the writing of /proposals and /explain wait until the event is set."""
    event, without_trace = threading.Event(), FaultyDetector._detections
    traced = lambda *arguments: dataclasses.replace(without_trace(*arguments), trace=object())  # noqa: E731
    monkeypatch.setattr(FaultyDetector, "_detections", staticmethod(traced))
    for module, name in ((proposals, "_write"), (explain, "_explain")):
        monkeypatch.setattr(module, name, lambda *_: b"{}" if event.wait(20) else b"")
    yield event
    event.set()


@pytest.mark.parametrize(("route", "options"), [("/proposals", {}), ("/explain", {"boxes": "[[1, 1, 9, 9]]"})])
def test_a_response_that_is_not_written_by_the_deadline_is_504(serve_faulty, small, blocked_writing, route, options):
    with serve_faulty() as live:
        headers = {"X-Request-Timeout-Ms": "1500"}
        response = live.client.post(route, files={"image": small}, data=options, headers=headers)
        check_problem(response, 504, "written")
        assert response.json()["code"] == "deadline_passed"
        blocked_writing.set()


def test_a_drain_waits_until_the_response_is_written(serve_faulty, clients, small, blocked_writing):
    with serve_faulty() as live:
        batcher = live.app.state.pipeline.batcher
        response = send(clients, live, small, path="/proposals")
        wait_for(lambda: live.metric("frcnn_batch_size_count") == 1 and batcher.slots_in_use == 0)
        assert batcher.requests_in_progress == 1
        blocked_writing.set()
        assert response.result().status_code == 200
        wait_for(lambda: batcher.requests_in_progress == 0)
