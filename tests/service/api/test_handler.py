"""The steps of an image route: timings, several images, many clients."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

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


def test_a_batch_request_is_not_refused_for_having_more_images_than_the_queue(serve_faulty, small):
    with serve_faulty(max_queue=4) as live:
        results = live.client.post("/detect/batch", files=[("image", small)] * 20).json()["results"]
        assert len(results) == 20
        assert all("boxes" in result for result in results)
