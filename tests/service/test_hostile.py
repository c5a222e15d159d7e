"""Hostile files and bodies: a picture, or a problem below 500, and never anything else."""

import socket

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.request import open_envelope
from service.errors import BadImage, ServiceError
from service.inference.decoding import decode, read
from tests.service import corpus

MAX_PIXELS = 1_000_000
SOUND = {format: corpus.sound(format) for format in corpus.FORMATS}


def outcome(data: bytes) -> int:
    """200 or the status of the problem; whatever else is raised fails the test."""
    problem = None
    try:
        pixels = decode(data, max_pixels=MAX_PIXELS)
        read(data, max_pixels=MAX_PIXELS, canvas=lambda height, width: (-(-height // 4), -(-width // 4)))
    except ServiceError as error:
        problem = error
    if problem is not None:
        assert problem.status in (400, 413, 415)
        assert len(problem.detail) < 300
        return problem.status
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    return 200


def test_every_file_of_the_corpus_is_a_picture_or_a_problem():
    statuses = {name: outcome(data) for name, data in corpus.everything()}
    assert len(statuses) > 1000
    assert statuses["PNG of 400 megapixels"] == 413
    assert statuses["JPEG of ten thousand scans"] == 400
    assert statuses["a PDF around a JPEG"] == 415
    assert statuses["JPEG and a zip"] == 200
    assert statuses["orientation 9 in a loop"] == 200


def test_a_jpeg_of_a_thousand_passes_is_refused_before_they_are_made():
    [bomb] = [data for name, data in corpus.bombs() if "scans" in name]
    with pytest.raises(BadImage, match="passes"):
        decode(bomb, max_pixels=1_000_000)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(corpus.FORMATS), st.data())
def test_no_mutation_of_a_picture_gets_through_as_anything_else(format, data):
    body = bytearray(SOUND[format])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=30))
    outcome(bytes(body))


BEGINNINGS = sorted({body[:length] for body in SOUND.values() for length in (0, 2, 4, 8, 16, 26, 40)})


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=400))
def test_no_bytes_behind_the_beginning_of_a_picture_get_through_as_anything_else(beginning, noise):
    outcome(beginning + noise)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["application/json", "multipart/form-data; boundary=b", "image/png", ""]), st.binary())
def test_no_envelope_breaks_the_reader(content_type, noise):
    for body in (noise, b"--b\r\n" + noise, b'{"image":' + noise):
        status = 200
        try:
            open_envelope(body, content_type)
        except ServiceError as error:
            status = error.status
        assert status in (200, 400, 422)


def exchange(url: str, request: bytes) -> bytes:
    target = httpx.URL(url)
    with socket.create_connection((target.host, target.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nabc",
        b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    ],
)
def test_a_request_that_lies_about_its_length_is_refused_or_dropped(service, request_bytes):
    answer = exchange(service.url, request_bytes)
    assert not answer.startswith(b"HTTP/1.1 5")
    assert not answer.startswith(b"HTTP/1.1 200")
    assert service.client.get("/readyz").json() == {"status": "ready"}


def test_multipart_within_multipart_is_an_option_nobody_knows_and_not_a_dive(service):
    body = SOUND["PNG"]
    for depth in range(50):
        mark = b"b%d" % depth
        body = b"--%b\r\nContent-Disposition: form-data; name=x\r\n\r\n%b\r\n--%b--\r\n" % (mark, body, mark)
    answer = service.client.post("/detect", content=body, headers={"Content-Type": "multipart/form-data; boundary=b49"})
    assert answer.status_code in (400, 422)
