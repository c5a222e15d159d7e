"""`regions` on POST /detect: Fast R-CNN on the caller's boxes."""

import base64
import json

import numpy as np
import pytest

LOW = {"score_threshold": "0.01"}


BOXES = [[20, 30, 220, 280], [100, 50, 400, 290]]


def test_query_form_and_json_give_the_same_boxes(service, cat_jpeg):
    text = json.dumps(BOXES)
    query = service.detect(cat_jpeg, params=LOW | {"regions": text})
    form = service.client.post("/detect", files={"image": cat_jpeg}, data=LOW | {"regions": text})
    document = {"image": base64.b64encode(cat_jpeg).decode(), "score_threshold": 0.01, "regions": BOXES}
    as_json = service.client.post("/detect", json=document)
    for response in (query, form, as_json):
        assert response.status_code == 200, response.text
        assert response.json()["boxes"] == query.json()["boxes"]
    # Fresh weights hardly move a box: each detection lies on one of the regions.
    for box in query.json()["boxes"]:
        assert min(np.abs(np.array(box) - region).max() for region in np.array(BOXES)) < 15


def test_an_empty_list_of_regions_has_no_detections(service, cat_jpeg):
    assert service.detect(cat_jpeg, params=LOW | {"regions": "[]"}).json()["boxes"] == []


@pytest.mark.parametrize(
    ("regions", "options", "problem"),
    [
        ("[[1, 2", {}, "must be JSON"),
        ("7", {}, "a list of at most 2000 boxes"),
        ("[[1, 2, 3]]", {}, "region 0 must be four numbers"),
        ('[[1, 2, 3, "4"]]', {}, "region 0 must be four numbers"),
        ("[[0, 0, 1e308, 1e308]]", {}, "none beyond 1000000000 pixels"),
        ("[[-1e10, 0, 5, 5]]", {}, "none beyond 1000000000 pixels"),
        ("[[0, 0, 1e400, 5]]", {}, "must be"),
        ("[[1, 2, 30, 40], [9, 9, 9, 20]]", {}, "region 1 has no area"),
        ("[[500, 10, 600, 90]]", {}, "region 0 lies outside the image, which is 451 x 300 pixels"),
        ("[[1, 2, 30, 40]]", {"proposals": "3"}, "the RPN does not run"),
    ],
)
def test_bad_regions_are_refused_by_name(service, cat_jpeg, regions, options, problem):
    response = service.detect(cat_jpeg, params={"regions": regions} | options)
    assert response.status_code == 422, response.text
    assert problem in response.json()["detail"]


def test_regions_of_a_batch_are_refused(service, cat_jpeg):
    response = service.client.post("/detect/batch", files={"image": cat_jpeg}, data={"regions": "[[1, 2, 30, 40]]"})
    assert response.status_code == 422
    assert "belong to one image" in response.json()["detail"]


@pytest.mark.parametrize(
    ("route", "fields", "problem"),
    [
        ("/detect", {"regions": "[[500, 10, 600, 90]]"}, "region 0 lies outside the image, which is 40 x 30 pixels"),
        ("/explain", {"boxes": "[[500, 10, 600, 90]]"}, "reaches out of the image, which is 40 x 30 pixels"),
    ],
)
def test_a_box_outside_the_image_is_refused_before_inference(serve_faulty, faulty, encoded, route, fields, problem):
    with serve_faulty() as live:
        calls = len(faulty.batches)
        response = live.client.post(route, files={"image": encoded((40, 30))}, data=fields)
        assert response.status_code == 422, response.text
        assert problem in response.json()["detail"]
        assert len(faulty.batches) == calls
