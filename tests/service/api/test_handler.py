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
    answer = service.detect(cat_jpeg)
    timings = answer.json()["timings_ms"]
    assert list(timings) == [*STAGES, "total"]
    assert sum(timings[stage] for stage in STAGES) == pytest.approx(timings["total"], rel=0.05, abs=2)
    header = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert float(header["backbone"]) == timings["backbone"]


def test_under_load_too_the_stages_are_the_whole_of_the_time(service, encoded, cat_jpeg):
    before = {stage: service.metric("frcnn_stage_seconds_sum", stage=stage) for stage in STAGES}
    bodies = [cat_jpeg, encoded((640, 480)), encoded((90, 300))]

    def ask(number: int) -> tuple[dict[str, float], dict[str, float], float]:
        began = time.monotonic()
        route = ("/detect", "/proposals")[number % 2]
        answer = httpx.post(f"{service.url}{route}", content=bodies[number % len(bodies)], timeout=120)
        spent = (time.monotonic() - began) * 1000
        header = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        return answer.json()["timings_ms"], {stage: float(value) for stage, value in header.items()}, spent

    with ThreadPoolExecutor(10) as clients:
        answers = list(clients.map(ask, range(30)))
    for timings, header, spent in answers:
        assert list(timings) == [*STAGES, "total"]
        assert min(timings.values()) >= 0
        assert sum(timings[stage] for stage in STAGES) == pytest.approx(timings["total"], rel=0.05, abs=2)
        assert header == timings
        assert timings["total"] <= spent
    counted = sum(service.metric("frcnn_stage_seconds_sum", stage=stage) - before[stage] for stage in STAGES)
    assert counted * 1000 == pytest.approx(sum(timings["total"] for timings, _, _ in answers), rel=0.05)


def test_sixteen_clients_at_once_each_get_their_own_answer(service, encoded):
    from concurrent.futures import ThreadPoolExecutor

    def ask(width: int) -> tuple[int, int, int]:
        answer = httpx.post(f"{service.url}/detect", content=encoded((width, 64)), timeout=120)
        return width, answer.status_code, json.loads(answer.content)["image"]["width"]

    with ThreadPoolExecutor(16) as clients:
        for width, status, answered in clients.map(ask, range(32, 96)):
            assert (status, answered) == (200, width)


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
