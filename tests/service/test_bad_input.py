"""Hostile and unlucky input: each gets its status and a sentence, and the next request is served as ever."""

import base64
import contextlib
import io
import socket
import struct
import zlib
from pathlib import Path

import httpx
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _next_request_is_served(service, encoded):
    yield
    answer = service.detect(encoded((50, 40)))
    assert answer.status_code == 200, "the service has not got over it"


def refused(answer: httpx.Response, status: int, *words: str) -> dict:
    """``answer`` is a problem of that status whose sentence has ``words``."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["detail"].endswith(".")
    for word in words:
        assert word in problem["detail"]
    for leak in ("Traceback", "site-packages", "0x7"):
        assert leak not in answer.text
    return problem


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_400(service, cat_jpeg, part):
    refused(service.detect(cat_jpeg[: int(len(cat_jpeg) * part)]), 400, "JPEG", "send the whole file")


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_half_a_picture_of_any_format_is_400(service, format):
    file = io.BytesIO()
    Image.effect_noise((120, 90), 80).convert("RGB").save(file, format)
    refused(service.detect(file.getvalue()[: len(file.getvalue()) // 2]), 400, "cannot be decoded")


def test_a_text_file_named_jpg_is_415(service):
    form = {"image": ("holiday.jpg", b"Dear diary, today I was not a picture.", "image/jpeg")}
    refused(service.client.post("/detect", files=form), 415, "JPEG, PNG, WebP")
    refused(service.detect(b"BMW makes cars, not pictures, and this is a text."), 415)


def test_an_unsupported_picture_is_415(service):
    refused(service.detect(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), 415)


def test_an_empty_body_is_400(service):
    refused(service.detect(b""), 400, "empty", "send the picture")


def test_a_one_pixel_picture_is_a_picture(service, encoded):
    answer = service.detect(encoded((1, 1)))
    assert answer.status_code == 200
    assert answer.json()["image"] == {"width": 1, "height": 1}


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (1999, 2000)])
def test_thin_and_large_pictures_within_the_limit_are_answered(service, encoded, size):
    answer = service.detect(encoded(size))
    assert answer.status_code == 200, answer.text
    assert answer.json()["image"] == {"width": size[0], "height": size[1]}


def test_twenty_thousand_pixels_square_in_a_few_kilobytes_is_413_before_it_is_decoded(service):
    bomb = io.BytesIO()
    Image.new("1", (20000, 20000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    refused(service.detect(bomb.getvalue()), 413, "20000 x 20000", "send a smaller one")
    refused(service.detect(png_header(2**31 - 1, 2**31 - 1)), 413)


def test_a_picture_without_pixels_is_400(service):
    refused(service.detect(png_header(0, 10)), 400)


def test_a_body_over_the_limit_is_413_by_its_announced_length(service):
    refused(service.detect(b"\xff\xd8\xff" + bytes(5 * 2**20)), 413, "4194304 bytes")


def test_a_body_over_the_limit_is_413_while_it_streams(service):
    sent = 0

    def endless():
        nonlocal sent
        while sent < 100 * 2**20:
            sent += 2**16
            yield bytes(2**16)

    with contextlib.suppress(httpx.TransportError):  # the server may close before the client has seen why
        refused(service.client.post("/detect", content=endless()), 413)
    assert sent < 50 * 2**20, "the whole body was taken in"


def test_a_client_that_hangs_up_in_the_middle_of_its_body_is_forgotten(service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")


def test_broken_envelopes_are_400(service, encoded):
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


def test_an_envelope_without_a_picture_is_422(service):
    refused(service.client.post("/detect", json={"score_threshold": 0.5}), 422, "no picture")
    refused(service.client.post("/detect", json={"image": 7}), 422, "no picture")
    refused(service.client.post("/detect", files={"photo": b"x"}), 422, "no picture")


def test_two_pictures_for_detect_are_422_and_named_the_batch_route(service, encoded):
    parts = [("image", encoded()), ("image", encoded())]
    refused(service.client.post("/detect", files=parts), 422, "/detect/batch")


@pytest.mark.parametrize(
    ("option", "value", "words"),
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
def test_options_unknown_or_out_of_range_are_422_whichever_way_they_come(service, encoded, option, value, words):
    by_query = service.detect(encoded(), params={option: value})
    by_form = service.client.post("/detect", files={"image": encoded()}, data={option: value})
    by_json = service.client.post("/detect", json={"image": base64.b64encode(encoded()).decode(), option: value})
    for answer in (by_query, by_form, by_json):
        problem = refused(answer, 422, option, words)
        assert [error["name"] for error in problem["errors"]] == [option]


def test_two_wrong_options_are_both_named(service, encoded):
    problem = refused(service.detect(encoded(), params={"score_threshold": 2, "max_detections": 0}), 422)
    assert {error["name"] for error in problem["errors"]} == {"score_threshold", "max_detections"}


@pytest.mark.parametrize("value", ["0", "-5", "soon", "99999999999"])
def test_a_deadline_that_is_none_is_422(service, encoded, value):
    refused(
        service.detect(encoded(), headers={"X-Request-Timeout-Ms": value}), 422, "X-Request-Timeout-Ms", "1 to 3600000"
    )


def test_routes_and_methods_that_are_not_there_are_problems_too(service):
    refused(service.client.get("/etc/passwd"), 404, "/docs")
    refused(service.client.get("/detect"), 405, "/docs")


@pytest.mark.parametrize("name", ["a b", "x" * 200, "<script>", ""])
def test_a_request_id_that_could_do_harm_is_replaced(service, name):
    answer = service.client.get("/livez", headers={"X-Request-ID": name})
    assert answer.headers["x-request-id"] != name
    assert len(answer.headers["x-request-id"]) == 32


def test_nothing_is_written_to_disk_for_a_large_form(service, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not-there"))
    big = encoded((1200, 900), format="BMP")
    assert service.client.post("/detect", files={"image": big}).status_code == 200
    assert not list(Path(tmp_path).iterdir())
