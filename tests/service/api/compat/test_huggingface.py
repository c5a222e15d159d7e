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


@pytest.mark.parametrize(
    ("body", "status", "name"),
    [
        ({"image": "x"}, 422, "inputs"),
        ({"inputs": [["eA=="]]}, 422, "inputs"),
        ({"inputs": {"inputs": "eA=="}}, 422, "inputs"),
        ({"inputs": None}, 422, "inputs"),
        ({"inputs": "no base64!"}, 400, "inputs"),
        (["eA=="], 400, "inputs"),
        ({"inputs": "eA==", "parameters": "threshold"}, 422, "parameters"),
        ({"inputs": "eA==", "parameters": [1]}, 422, "parameters"),
        ({"inputs": "eA==", "parameters": {"threshold": "high"}}, 422, "threshold"),
        ({"inputs": "eA==", "parameters": {"threshold": "nan"}}, 422, "threshold"),
        ({"inputs": "eA==", "parameters": {"threshold": [0.5]}}, 422, "threshold"),
        ({"inputs": "eA==", "parameters": {"threshold": 1e308}}, 422, "threshold"),
        ({"inputs": "eA==", "parameters": {str(number): number for number in range(9_000)}}, 413, "65536 bytes"),
    ],
)
def test_other_json_is_refused_and_the_message_names_what_is_wrong(
    compat_service: Live, body: object, status: int, name: str
) -> None:
    response = compat_service.client.post("/huggingface/object-detection", json=body)
    assert response.status_code == status, response.text
    assert name in response.json()["error"]


@pytest.mark.parametrize("parameters", [None, {}, {"top_k": 3}, {"threshold": "0.5"}])
def test_parameters_that_are_unknown_or_null_are_ignored(compat_service: Live, encoded, parameters: object) -> None:
    body = {"inputs": base64.b64encode(encoded()).decode(), "parameters": parameters}
    assert compat_service.client.post("/huggingface/object-detection", json=body).status_code == 200
