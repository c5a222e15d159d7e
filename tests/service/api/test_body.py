"""The forms of a body: raw, multipart, JSON; whole, broken and hostile."""

import base64
import contextlib
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.body import MAX_CONTENT_TYPE, MAX_PARTS, is_raw, parse_body
from service.errors import BadRequest, ServiceError, TooLarge
from tests.service import corpus
from tests.service.exchange import check_problem

pytestmark = pytest.mark.usefixtures("next_request_is_served")


MULTIPART = "multipart/form-data; boundary=b"
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
    check_problem(post("/detect", content=b"[" * 10_000, headers=as_json), 400, "not JSON")
    check_problem(post("/detect", json={"image": "no base64!"}), 400, "base64")
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    check_problem(post("/detect", content=b"--b\r\nnonsense", headers=multipart), 400, "multipart")
    whole = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + encoded() + b"\r\n"
    check_problem(post("/detect", content=whole, headers=multipart), 400, "multipart")
    check_problem(post("/detect", content=whole, headers={"Content-Type": "multipart/form-data"}), 400, "boundary")
    check_problem(post("/detect", files=[(f"f{i}", b"") for i in range(200)]), 400, "parts")


def test_a_body_without_an_image_is_422(service):
    check_problem(service.client.post("/detect", json={"score_threshold": 0.5}), 422, "no image")
    check_problem(service.client.post("/detect", json={"image": 7}), 422, "no image")
    check_problem(service.client.post("/detect", files={"photo": b"x"}), 422, "no image")


def test_nothing_is_written_to_disk_for_a_large_form(service, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not-there"))
    big = encoded((1200, 900), format="BMP")
    assert service.client.post("/detect", files={"image": big}).status_code == 200
    assert not list(Path(tmp_path).iterdir())


def part(name: str, content: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), content)


def test_options_over_64_kib_are_413_in_every_form(service, encoded):
    many = {f"option{number}": "x" * 1000 for number in range(70)}
    check_problem(service.client.post("/detect", files={"image": encoded()}, data=many), 413, "65536 bytes")
    in_base64 = base64.b64encode(encoded()).decode()
    check_problem(service.client.post("/detect", json={"image": in_base64} | many), 413, "65536 bytes")
    with pytest.raises(TooLarge, match="`classes`"):
        parse_body(part("image", b"x") + part("classes", b"x" * 70_000) + b"--b--", MULTIPART)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["image", "classes", "größe"]), st.text("\r\n-bx:é", max_size=12)), max_size=4),
    st.sampled_from([b"", b"\r\n", b"preamble\r\n"]),
)
def test_the_parts_of_a_form_are_returned_as_they_were_sent(parts, preamble):
    parts = [(name, content.replace("--b", "")) for name, content in parts if "--b" not in content.replace("--b", "")]
    body = preamble + b"".join(part(name, content.encode()) for name, content in [*parts, ("image", "last")])
    images, options = parse_body(body + b"--b--\r\nepilogue", MULTIPART)
    assert images == tuple(content.encode() for name, content in [*parts, ("image", "last")] if name == "image")
    for field in {name for name, _ in parts} - {"image"}:
        sent = [content for name, content in parts if name == field]
        assert options[field] == (sent[0] if len(sent) == 1 else sent)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "broken"),
        (b"--b", "ends in the middle"),
        (b"--b\r", "ends in the middle"),
        (b"--b\r\nContent-Disposition: form-data; na", "ends in the middle"),
        (part("image", b"x"), "ends in the middle"),
        (part("image", b"x") + b"--bcd", "broken"),
        (b"--b\r\nA: " + b"a" * 5000 + b"\r\n\r\n\r\n--b--", "broken"),
        (b"--b\r\n\r\nx\r\n--b--", "no name"),
        (b"--b\r\nnonsense\r\n\r\nx\r\n--b--", "broken"),
        (part("image", b"x") * (MAX_PARTS + 1) + b"--b--", "over 128 parts"),
    ],
)
def test_a_broken_form_is_400(body, problem):
    with pytest.raises(BadRequest, match=problem):
        parse_body(body, MULTIPART)


def test_as_many_parts_as_are_allowed_are_read():
    assert len(parse_body(part("image", b"x") * MAX_PARTS + b"--b--", MULTIPART)[0]) == MAX_PARTS


@pytest.mark.parametrize(
    "unit", [b"\r", b"\r\n", b"\r\n-", b"\r\n--", b"\r\n--bx", b"\r\n--b\rx", b"\r\n--b-", part("a", b""), b"a: b\r\n"]
)
def test_megabytes_of_anything_in_a_form_cost_little(unit):
    megabytes = unit * (8 * 2**20 // len(unit))
    for body in (megabytes, b"--b\r\n" + megabytes, part("image", megabytes) + b"--b--"):
        tracemalloc.start()
        started = time.thread_time()
        with contextlib.suppress(ServiceError):
            parse_body(body, MULTIPART)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert time.thread_time() - started < 1
        assert peak < len(body) + 2**20  # an image is copied out of the body once


@pytest.mark.parametrize("content_type", ["multipart/form-data; " + "a=b;" * 15_000, "x" * (MAX_CONTENT_TYPE + 1)])
def test_a_content_type_that_is_too_long_is_refused_before_it_is_parsed(content_type):
    for read in (is_raw, lambda header: parse_body(b"", header)):
        with pytest.raises(BadRequest, match="Content-Type is over 1024"):
            read(content_type)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["application/json", MULTIPART, "image/png", ""]), st.binary())
def test_no_body_breaks_the_parser(content_type, noise):
    for body in (noise, b"--b\r\n" + noise, b'{"image":' + noise, part("image", noise)):
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
