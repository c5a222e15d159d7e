"""The forms of a body: raw, multipart, JSON; whole, broken and hostile."""

import base64
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.body import parse_body
from service.errors import ServiceError
from tests.service import corpus
from tests.service.exchange import refused

pytestmark = pytest.mark.usefixtures("next_request_is_served")


LOW = {"score_threshold": "0.01"}  # random weights score all classes alike: let some through


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


def test_broken_json_and_multipart_are_400(service, encoded):
    post = service.client.post
    as_json = {"Content-Type": "application/json"}
    refused(post("/detect", content=b'{"image": ', headers=as_json), 400, "not JSON")
    refused(post("/detect", content=b"[1, 2]", headers=as_json), 400, "object")
    refused(post("/detect", content=b"[" * 100_000, headers=as_json), 400)
    refused(post("/detect", json={"image": "no base64!"}), 400, "base64")
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    refused(post("/detect", content=b"--b\r\nnonsense", headers=multipart), 400, "multipart")
    whole = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + encoded() + b"\r\n"
    refused(post("/detect", content=whole, headers=multipart), 400, "multipart")
    refused(post("/detect", content=whole, headers={"Content-Type": "multipart/form-data"}), 400, "boundary")
    refused(post("/detect", files=[(f"f{i}", b"") for i in range(200)]), 400, "parts")
    refused(post("/detect", files={"image": encoded()}, data={"classes": "x" * 100_000}), 400, "classes")


def test_a_body_without_an_image_is_422(service):
    refused(service.client.post("/detect", json={"score_threshold": 0.5}), 422, "no image")
    refused(service.client.post("/detect", json={"image": 7}), 422, "no image")
    refused(service.client.post("/detect", files={"photo": b"x"}), 422, "no image")


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


def test_multipart_within_multipart_is_an_option_nobody_knows_and_not_a_dive(service):
    body = corpus.sound("PNG")
    for depth in range(50):
        mark = b"b%d" % depth
        body = b"--%b\r\nContent-Disposition: form-data; name=x\r\n\r\n%b\r\n--%b--\r\n" % (mark, body, mark)
    answer = service.client.post("/detect", content=body, headers={"Content-Type": "multipart/form-data; boundary=b49"})
    assert answer.status_code in (400, 422)
