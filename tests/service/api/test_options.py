"""Options: merged, bounded, and refused by name."""

import base64

import pytest

from tests.service.exchange import check_problem

pytestmark = pytest.mark.usefixtures("next_request_is_served")


LOW = {"score_threshold": "0.01"}  # random weights score all classes alike: let some through


def test_options_beside_the_image_win_over_the_query(service, cat_jpeg):
    response = service.client.post(
        "/detect", params={"max_detections": 5} | LOW, files={"image": cat_jpeg}, data={"max_detections": "2"}
    )
    assert len(response.json()["boxes"]) == 2


@pytest.mark.parametrize(
    ("option", "value", "phrase"),
    [
        ("score_threshold", "1.5", "the range is 0 to 1"),
        ("score_threshold", "-0.1", "greater than or equal to 0"),
        ("score_threshold", "nan", "finite"),
        ("score_threshold", "high", "number"),
        ("max_detections", "0", "greater than or equal to 1"),
        ("max_detections", "1001", "less than or equal to 1000"),
        ("nms_threshold", "7", "less than or equal to 1"),
        ("box_format", "yxyx", "'xyxy', 'xywh' or 'cxcywh'"),
        ("normalized", "perhaps", "boolean"),
        ("proposals", "-1", "greater than or equal to 0"),
        ("proposals", "9999", "that this detector proposes"),
        ("classes", "unicorn", "'unicorn' is not a class"),
        ("classes", "0", "ids are 1 to 3"),
        ("classes", "99", "ids are 1 to 3"),
        ("treshold", "0.5", "no such option"),
    ],
)
def test_invalid_options_are_422_in_query_form_and_json(service, encoded, option, value, phrase):
    by_query = service.detect(encoded(), params={option: value})
    by_form = service.client.post("/detect", files={"image": encoded()}, data={option: value})
    by_json = service.client.post("/detect", json={"image": base64.b64encode(encoded()).decode(), option: value})
    for response in (by_query, by_form, by_json):
        problem = check_problem(response, 422, option, phrase)
        assert [error["name"] for error in problem["errors"]] == [option]


def test_two_wrong_options_are_both_named(service, encoded):
    problem = check_problem(service.detect(encoded(), params={"score_threshold": 2, "max_detections": 0}), 422)
    assert {error["name"] for error in problem["errors"]} == {"score_threshold", "max_detections"}


@pytest.mark.parametrize("value", ["0", "-5", "soon", "99999999999"])
def test_an_invalid_deadline_is_422(service, encoded, value):
    check_problem(
        service.detect(encoded(), headers={"X-Request-Timeout-Ms": value}), 422, "X-Request-Timeout-Ms", "1 to 3600000"
    )
