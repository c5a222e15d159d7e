"""Hugging Face's interface."""

import base64

import pytest

from tests.service.conftest import Live


@pytest.mark.parametrize("form", ["raw", "json"])
def test_objects_are_a_list_of_label_score_and_box(compat_service: Live, encoded, form: str) -> None:
    image = encoded((48, 32))
    path = "/huggingface/object-detection"
    if form == "raw":
        response = compat_service.client.post(path, content=image, headers={"Content-Type": "image/png"})
    else:
        body = {"inputs": base64.b64encode(image).decode(), "parameters": {"threshold": 0.3}}
        response = compat_service.client.post(path, json=body)
    assert response.json() == [
        {"label": "cat", "score": pytest.approx(0.9), "box": {"xmin": 0, "ymin": 0, "xmax": 48, "ymax": 32}}
    ]


def test_missing_inputs_are_400(compat_service: Live) -> None:
    response = compat_service.client.post("/huggingface/object-detection", json={"image": "x"})
    assert response.status_code == 400
    assert "inputs" in response.json()["error"]
