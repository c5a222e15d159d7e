"""Limits on the head of a request, and requests that cannot be parsed."""

import http.client
import json
import socket
import time

import httpx
import pytest

from service.app import create_app
from service.server.http_protocol import LimitedHttpProtocol
from service.settings import load_settings
from tests.service.image_processes import IMAGE_PROCESSES
from tests.service.server.conftest import served


@pytest.fixture
def port(faulty, monkeypatch):
    monkeypatch.setattr(LimitedHttpProtocol, "HEAD_SECONDS", 0.5)
    settings = load_settings(port=0)
    with served(
        create_app(settings, detector_factory=lambda _: faulty, image_processes=IMAGE_PROCESSES), settings
    ) as port:
        yield port


@pytest.mark.parametrize("head", [b"", b"POST /detect HTTP/1.1\r\nHost: x\r\n"])
def test_a_slow_head_ends_the_connection(port, head):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(100) == b""


def test_a_large_head_ends_the_connection(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        endless = b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(10_000))
        with pytest.raises(OSError, match=r"reset|pipe"):  # the server closes while the client still sends
            connection.sendall(endless)


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"nonsense\r\n\r\n", "not HTTP"),
        (b"POST /detect?regions=" + b"1" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "too long"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"1" * 500_000, "64 KiB"),
        (b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", "not HTTP"),
    ],
    ids=["no HTTP", "long address", "long head", "broken chunk"],
)
def test_a_request_that_cannot_be_read_is_a_problem_of_400(port, request_bytes, reason):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request_bytes)
        response = http.client.HTTPResponse(connection)
        response.begin()
        problem = json.loads(response.read())
        assert (response.status, problem["status"], problem["code"]) == (400, 400, "bad_request")
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["X-Request-ID"] == problem["request_id"]
        assert reason in problem["detail"]
        assert connection.recv(100) == b"", "the connection ends"


def test_invalid_bytes_after_a_request_do_not_lose_its_response(port, faulty, small):
    faulty.delay = 0.5
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(small)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head + small)
        time.sleep(0.2)
        connection.sendall(b"nonsense\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 200
        assert len(json.loads(response.read())["boxes"]) == 1
        assert connection.recv(100) == b"", "the connection ends"


def test_a_slow_response_on_a_kept_connection_is_sent(port, faulty, small):
    faulty.delay = 0.7
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            assert client.post("/detect", content=small).status_code == 200
