"""POST /detect: three ways in, options, frames, and pictures out."""

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

STAGES = ("decode", "queue", "transform", "backbone", "rpn", "roi_head", "postprocess", "serialize")
LOW = {"score_threshold": "0.01"}  # random weights score all classes alike: let some through


def test_the_raw_picture_is_answered_with_boxes_by_falling_score(service, cat_jpeg):
    answer = service.client.post(
        "/detect", content=cat_jpeg, headers={"Content-Type": "image/jpeg", "X-Request-ID": "cat-1"}, params=LOW
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["request_id"] == answer.headers["x-request-id"] == "cat-1"
    assert body["model"] == "random"
    assert body["image"] == {"width": 451, "height": 300}
    assert body["box_format"] == "xyxy"
    assert body["normalized"] is False
    assert 0 < len(body["boxes"]) == len(body["scores"]) == len(body["labels"]) == len(body["class_ids"]) <= 100
    assert body["scores"] == sorted(body["scores"], reverse=True)
    assert "proposals" not in body
    for x1, y1, x2, y2 in body["boxes"]:
        assert 0 <= x1 < x2 <= 451
        assert 0 <= y1 < y2 <= 300


def test_form_json_and_raw_give_the_same_boxes(service, cat_jpeg):
    raw = service.client.post("/detect", content=cat_jpeg, headers={"Content-Type": "image/jpeg"}, params=LOW)
    form = service.client.post("/detect", files={"image": ("cat.jpg", cat_jpeg)}, data=LOW)
    document = {"image": base64.b64encode(cat_jpeg).decode(), "score_threshold": 0.01}
    as_json = service.client.post("/detect", json=document)
    as_url = service.client.post("/detect", json=document | {"image": f"data:image/jpeg;base64,{document['image']}"})
    for other in (form, as_json, as_url):
        assert other.status_code == 200, other.text
        assert other.json()["boxes"] == raw.json()["boxes"]


def test_what_curl_sends_without_a_content_type_is_known_by_its_content(service, cat_jpeg):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert service.client.post("/detect", content=cat_jpeg, headers=headers).status_code == 200


def test_boxes_come_in_the_frame_that_was_asked_for(service, cat_jpeg):
    def boxes(**params):
        return np.array(service.detect(cat_jpeg, params=LOW | params).json()["boxes"])

    corners = boxes()
    size = corners[:, 2:] - corners[:, :2]
    np.testing.assert_allclose(boxes(box_format="xywh"), np.hstack([corners[:, :2], size]), atol=1e-3)
    np.testing.assert_allclose(boxes(box_format="cxcywh"), np.hstack([corners[:, :2] + size / 2, size]), atol=1e-3)
    np.testing.assert_allclose(boxes(normalized="true") * [451, 300, 451, 300], corners, atol=1e-3)


def test_options_limit_what_is_returned(service, cat_jpeg):
    def ask(**params):
        return service.detect(cat_jpeg, params=LOW | params).json()

    everything = ask()
    assert len(ask(max_detections=3)["boxes"]) == 3
    threshold = everything["scores"][len(everything["scores"]) // 2]
    assert all(score > threshold for score in ask(score_threshold=threshold)["scores"])
    assert set(ask(classes=["cat", "3"])["labels"]) <= {"cat", "person"}
    assert ask(score_threshold=1)["boxes"] == []
    assert len(ask(proposals=7)["proposals"]["boxes"]) == 7


def test_options_beside_the_picture_win_over_the_query(service, cat_jpeg):
    answer = service.client.post(
        "/detect", params={"max_detections": 5} | LOW, files={"image": cat_jpeg}, data={"max_detections": "2"}
    )
    assert len(answer.json()["boxes"]) == 2


@pytest.mark.parametrize(("accept", "format"), [("image/jpeg", "JPEG"), ("image/png", "PNG"), ("image/*", "JPEG")])
def test_a_picture_with_its_boxes_drawn_is_given_to_who_accepts_one(service, cat_jpeg, accept, format):
    answer = service.detect(cat_jpeg, params=LOW, headers={"Accept": accept})
    assert answer.status_code == 200
    with Image.open(io.BytesIO(answer.content)) as drawn, Image.open(io.BytesIO(cat_jpeg)) as plain:
        assert drawn.format == format
        assert drawn.size == plain.size
        assert np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).max() > 50


def test_json_is_what_a_browser_or_curl_gets(service, cat_jpeg):
    for accept in (
        "*/*",
        "text/html,application/json;q=0.9,*/*;q=0.8",
        "image/png;q=0.5, application/json",
        "nonsense",
    ):
        assert service.detect(cat_jpeg, headers={"Accept": accept}).headers["content-type"] == "application/json"


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


def test_a_body_in_chunks_without_a_length_is_read(service, cat_jpeg):
    def chunks():
        for start in range(0, len(cat_jpeg), 5000):
            yield cat_jpeg[start : start + 5000]

    assert service.client.post("/detect", content=chunks(), headers={"Content-Type": "image/jpeg"}).status_code == 200


def test_several_pictures_in_one_request_keep_their_order_and_a_bad_one_spoils_nothing(service, encoded):
    widths = [40, 80, 120, 160]
    parts = [("image", (f"{w}.png", encoded((w, 50)))) for w in widths]
    parts.insert(2, ("image", ("broken.png", encoded()[:40])))
    results = service.client.post("/detect/batch", files=parts).json()["results"]
    assert [r["image"]["width"] if "image" in r else r["status"] for r in results] == [40, 80, 400, 120, 160]


def test_thirty_two_pictures_are_taken_and_thirty_three_are_not(service, encoded):
    part = ("image", ("a.png", encoded()))
    assert len(service.client.post("/detect/batch", files=[part] * 32).json()["results"]) == 32
    assert service.client.post("/detect/batch", files=[part] * 33).status_code == 422


def test_proposals_are_the_boxes_that_the_rpn_made_from_anchors(service, cat_jpeg):
    headers = {"Content-Type": "image/jpeg"}
    body = service.client.post("/proposals", content=cat_jpeg, headers=headers, params={"limit": 20}).json()
    assert body["count"] > len(body["boxes"]) == 20
    assert body["objectness"] == sorted(body["objectness"], reverse=True)
    anchors, deltas, boxes = (np.array(body[key]) for key in ("anchors", "deltas", "boxes"))
    # Equation 2 of the paper, read backwards: the centre moves by tx of the anchor's width.
    centres = (anchors[:, 0] + anchors[:, 2]) / 2 + deltas[:, 0] * (anchors[:, 2] - anchors[:, 0])
    inside = (boxes[:, 0] > 0.01) & (boxes[:, 2] < 450.9)
    np.testing.assert_allclose(((boxes[:, 0] + boxes[:, 2]) / 2)[inside], centres[inside], atol=1.0)


def test_proposals_can_be_filtered_by_level_and_objectness(service, cat_jpeg):
    def ask(**params):
        headers = {"Content-Type": "image/jpeg"}
        return service.client.post("/proposals", content=cat_jpeg, headers=headers, params=params).json()

    everything = ask(limit=10000)
    assert len(everything["boxes"]) == everything["count"]
    level = everything["levels"][0]
    assert set(ask(level=level)["levels"]) == {level}
    middle = everything["objectness"][everything["count"] // 2]
    assert min(ask(min_objectness=middle, limit=10000)["objectness"]) >= middle


def test_proposals_are_drawn_for_who_accepts_a_picture(service, cat_jpeg):
    answer = service.client.post("/proposals", content=cat_jpeg, headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (451, 300)


def test_sixteen_clients_at_once_each_get_their_own_answer(service, encoded):
    from concurrent.futures import ThreadPoolExecutor

    def ask(width: int) -> tuple[int, int, int]:
        answer = httpx.post(f"{service.url}/detect", content=encoded((width, 64)), timeout=120)
        return width, answer.status_code, json.loads(answer.content)["image"]["width"]

    with ThreadPoolExecutor(16) as clients:
        for width, status, answered in clients.map(ask, range(32, 96)):
            assert (status, answered) == (200, width)


def test_a_photograph_far_larger_than_the_canvas_is_answered_in_its_own_pixels(service, chelsea):
    """It is decoded at a part of its size: boxes stay where they are in a file that must be decoded in full."""
    large = Image.fromarray(chelsea).resize((1204, 800), Image.Resampling.BICUBIC)
    files = [io.BytesIO(), io.BytesIO()]
    large.save(files[0], "JPEG", quality=95)
    large.save(files[1], "BMP")
    reduced, full = (
        service.client.post("/proposals", content=file.getvalue(), params={"limit": 5}).json() for file in files
    )
    assert reduced["image"] == full["image"] == {"width": 1204, "height": 800}
    assert np.abs(np.array(reduced["boxes"]) - np.array(full["boxes"])).max() < 20


def test_a_picture_that_is_drawn_on_is_decoded_in_full(service, chelsea):
    file = io.BytesIO()
    Image.fromarray(chelsea).resize((1804, 1200)).save(file, "JPEG")
    for route in ("/detect", "/proposals"):
        drawn = service.client.post(route, content=file.getvalue(), headers={"Accept": "image/jpeg"})
        assert Image.open(io.BytesIO(drawn.content)).size == (1804, 1200)
