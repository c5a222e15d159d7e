"""``POST /detect`` and ``POST /detect/batch``."""

import io

import numpy as np
import pytest
from PIL import Image

LOW = {"score_threshold": "0.01"}  # random weights score all classes alike: let some through


def test_a_raw_image_gets_boxes_by_falling_score(service, cat_jpeg):
    response = service.client.post(
        "/detect", content=cat_jpeg, headers={"Content-Type": "image/jpeg", "X-Request-ID": "cat-1"}, params=LOW
    )
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["request_id"] == response.headers["x-request-id"] == "cat-1"
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


@pytest.mark.parametrize(("accept", "format"), [("image/jpeg", "JPEG"), ("image/png", "PNG"), ("image/*", "JPEG")])
def test_the_image_with_its_boxes_is_returned_where_the_client_accepts_an_image(service, cat_jpeg, accept, format):
    response = service.detect(cat_jpeg, params=LOW, headers={"Accept": accept})
    assert response.status_code == 200
    with Image.open(io.BytesIO(response.content)) as drawn, Image.open(io.BytesIO(cat_jpeg)) as plain:
        assert drawn.format == format
        assert drawn.size == plain.size
        assert np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).max() > 50


def test_several_images_keep_their_order_and_a_broken_one_fails_alone(service, encoded):
    widths = [40, 80, 120, 160]
    parts = [("image", (f"{w}.png", encoded((w, 50)))) for w in widths]
    parts.insert(2, ("image", ("broken.png", encoded()[:40])))
    results = service.client.post("/detect/batch", files=parts).json()["results"]
    assert [result["image"]["width"] if "image" in result else result["status"] for result in results] == [
        40,
        80,
        400,
        120,
        160,
    ]


def test_thirty_two_images_are_accepted_and_thirty_three_are_422(service, encoded):
    part = ("image", ("a.png", encoded()))
    assert len(service.client.post("/detect/batch", files=[part] * 32).json()["results"]) == 32
    assert service.client.post("/detect/batch", files=[part] * 33).status_code == 422
