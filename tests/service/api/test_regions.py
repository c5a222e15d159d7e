"""`regions` on POST /detect: Fast R-CNN on the caller's boxes."""

import base64
import json

import numpy as np
import pytest

LOW = {"score_threshold": "0.01"}


BOXES = [[20, 30, 220, 280], [100, 50, 400, 290]]


def test_query_form_and_json_give_the_same_answer(service, cat_jpeg):
    text = json.dumps(BOXES)
    query = service.detect(cat_jpeg, params=LOW | {"regions": text})
    form = service.client.post("/detect", files={"image": cat_jpeg}, data=LOW | {"regions": text})
    document = {"image": base64.b64encode(cat_jpeg).decode(), "score_threshold": 0.01, "regions": BOXES}
    as_json = service.client.post("/detect", json=document)
    for answer in (query, form, as_json):
        assert answer.status_code == 200, answer.text
        assert answer.json()["boxes"] == query.json()["boxes"]
    # Fresh weights hardly move a box: what is found lies on what was brought.
    for box in query.json()["boxes"]:
        assert min(np.abs(np.array(box) - brought).max() for brought in np.array(BOXES)) < 15


def test_no_regions_find_nothing(service, cat_jpeg):
    assert service.detect(cat_jpeg, params=LOW | {"regions": "[]"}).json()["boxes"] == []


@pytest.mark.parametrize(
    ("regions", "more", "problem"),
    [
        ("[[1, 2", {}, "must be JSON"),
        ("7", {}, "a list of at most 2000 boxes"),
        ("[[1, 2, 3]]", {}, "region 0 must be four numbers"),
        ('[[1, 2, 3, "4"]]', {}, "region 0 must be four numbers"),
        ("[[1, 2, 30, 40], [9, 9, 9, 20]]", {}, "region 1 has no area"),
        ("[[500, 10, 600, 90]]", {}, "region 0 lies outside the image, which is 451 x 300 pixels"),
        ("[[1, 2, 30, 40]]", {"proposals": "3"}, "the RPN does not run"),
    ],
)
def test_bad_regions_are_refused_by_name(service, cat_jpeg, regions, more, problem):
    answer = service.detect(cat_jpeg, params={"regions": regions} | more)
    assert answer.status_code == 422, answer.text
    assert problem in answer.json()["detail"]


def test_regions_of_a_batch_are_refused(service, cat_jpeg):
    answer = service.client.post("/detect/batch", files={"image": cat_jpeg}, data={"regions": "[[1, 2, 30, 40]]"})
    assert answer.status_code == 422
    assert "belong to one image" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("route", "fields", "problem"),
    [
        ("/detect", {"regions": "[[500, 10, 600, 90]]"}, "region 0 lies outside the image, which is 40 x 30 pixels"),
        ("/explain", {"boxes": "[[500, 10, 600, 90]]"}, "reaches out of the image, which is 40 x 30 pixels"),
    ],
)
def test_a_box_outside_the_image_is_refused_before_the_device_sees_it(
    serve_faulty, faulty, encoded, route, fields, problem
):
    with serve_faulty() as live:
        looked = len(faulty.batches)
        answer = live.client.post(route, files={"image": encoded((40, 30))}, data=fields)
        assert answer.status_code == 422, answer.text
        assert problem in answer.json()["detail"]
        assert len(faulty.batches) == looked
