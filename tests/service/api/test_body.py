"""The forms of a body: raw, multipart, JSON; whole, broken and hostile."""

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.body import parse_body
from service.errors import ServiceError
from tests.service import corpus
from tests.service.exchange import check_problem

pytestmark = pytest.mark.usefixtures("next_request_is_served")


LOW = {"score_threshold": "0.01"}  # random weights score all classes alike: let some through


def test_form_json_and_raw_give_the_same_boxes(service, cat_jpeg):
    raw = service.client.post("/detect", content=cat_jpeg, headers={"Content-Type": "image/jpeg"}, params=LOW)
    form = service.client.post("/detect", files={"image": ("cat.jpg", cat_jpeg)}, data=LOW)
    document = {"image": base64.b64encode(cat_jpeg).decode(), "score_threshold": 0.01}
    as_json = service.client.post("/detect", json=document)
    as_url = service.client.post("/detect", json=document | {"image": f"data:image/jpeg;base64,{document['image']}"})
    for response in (form, as_json, as_url):
        assert response.status_code == 200, response.text
        assert response.json()["boxes"] == raw.json()["boxes"]


def test_an_image_with_the_default_content_type_of_curl_is_accepted(service, cat_jpeg):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert service.client.post("/detect", content=cat_jpeg, headers=headers).status_code == 200


def test_broken_json_and_multipart_are_400(service, encoded):
    post = service.client.post
    as_json = {"Content-Type": "application/json"}
    check_problem(post("/detect", content=b'{"image": ', headers=as_json), 400, "not JSON")
    check_problem(post("/detect", content=b"[1, 2]", headers=as_json), 400, "object")
    check_problem(post("/detect", content=b"[" * 100_000, headers=as_json), 400)
    check_problem(post("/detect", json={"image": "no base64!"}), 400, "base64")
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    check_problem(post("/detect", content=b"--b\r\nnonsense", headers=multipart), 400, "multipart")
    whole = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + encoded() + b"\r\n"
    check_problem(post("/detect", content=whole, headers=multipart), 400, "multipart")
    check_problem(post("/detect", content=whole, headers={"Content-Type": "multipart/form-data"}), 400, "boundary")
    check_problem(post("/detect", files=[(f"f{i}", b"") for i in range(200)]), 400, "parts")
    check_problem(post("/detect", files={"image": encoded()}, data={"classes": "x" * 100_000}), 400, "classes")


def test_a_body_without_an_image_is_422(service):
    check_problem(service.client.post("/detect", json={"score_threshold": 0.5}), 422, "no image")
    check_problem(service.client.post("/detect", json={"image": 7}), 422, "no image")
    check_problem(service.client.post("/detect", files={"photo": b"x"}), 422, "no image")


def test_nothing_is_written_to_disk_for_a_large_form(service, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not-there"))
    big = encoded((1200, 900), format="BMP")
    assert service.client.post("/detect", files={"image": big}).status_code == 200
    assert not list(Path(tmp_path).iterdir())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["application/json", "multipart/form-data; boundary=b", "image/png", ""]), st.binary())
def test_no_body_breaks_the_parser(content_type, noise):
    for body in (noise, b"--b\r\n" + noise, b'{"image":' + noise):
        status = 200
        try:
            parse_body(body, content_type)
        except ServiceError as error:
            status = error.status
        assert status in (200, 400, 422)


def test_nested_multipart_is_refused_and_not_parsed_recursively(service):
    body = corpus.intact("PNG")
    for depth in range(50):
        boundary = b"b%d" % depth
        body = b"--%b\r\nContent-Disposition: form-data; name=x\r\n\r\n%b\r\n--%b--\r\n" % (boundary, body, boundary)
    response = service.client.post(
        "/detect", content=body, headers={"Content-Type": "multipart/form-data; boundary=b49"}
    )
    assert response.status_code in (400, 422)
