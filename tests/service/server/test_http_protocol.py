"""The server around the app: heads that never end, nonsense, connections kept open, TLS."""

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from shutil import which

import httpx
import pytest

from service.app import create_app
from service.server.http_protocol import LimitedHttpProtocol
from service.server.uvicorn_server import Server
from service.settings import load_settings
from tests.service.exchange import wait_for


@contextlib.contextmanager
def served(app, settings):
    server = Server(app, settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, 30)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def port(faulty, monkeypatch):
    monkeypatch.setattr(LimitedHttpProtocol, "HEAD_SECONDS", 0.5)
    settings = load_settings(port=0)
    with served(create_app(settings, detector_factory=lambda _: faulty), settings) as port:
        yield port


@pytest.mark.parametrize("head", [b"", b"POST /detect HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_never_ends_is_cut_off(port, head):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(100) == b""


def test_a_head_without_bounds_is_cut_off(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        endless = b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(10_000))
        with pytest.raises(OSError, match=r"reset|pipe"):  # cut off while there is more to read
            connection.sendall(endless)


@pytest.mark.parametrize(
    ("request_bytes", "why"),
    [
        (b"nonsense\r\n\r\n", "not HTTP"),
        (b"POST /detect?regions=" + b"1" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "too long"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"1" * 500_000, "64 KiB"),
        (b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", "not HTTP"),
    ],
    ids=["no HTTP", "long address", "long head", "broken chunk"],
)
def test_a_request_that_cannot_be_read_is_a_problem_of_400(port, request_bytes, why):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request_bytes)
        response = http.client.HTTPResponse(connection)
        response.begin()
        problem = json.loads(response.read())
        assert (response.status, problem["status"], problem["code"]) == (400, 400, "bad_request")
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["X-Request-ID"] == problem["request_id"]
        assert why in problem["detail"]
        assert connection.recv(100) == b"", "the connection ends"


def test_nonsense_behind_a_request_does_not_take_its_answer(port, faulty, small):
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


def test_a_slow_answer_on_a_connection_kept_open_is_not_cut_off(port, faulty, small):
    faulty.delay = 0.7
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            assert client.post("/detect", content=small).status_code == 200


def test_a_connection_is_kept_longer_than_clients_keep_it(faulty):
    # Or their next request and our closing cross on the way: httpx waits 5 s, nginx 60.
    settings = load_settings(port=0)
    assert Server(create_app(settings, detector_factory=lambda _: faulty), settings).config.timeout_keep_alive > 60


@pytest.mark.skipif(which("openssl") is None, reason="needs the openssl command, to make a certificate")
def test_it_speaks_tls_where_a_certificate_is_set(faulty, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout {key} -out {cert} -subj /CN=localhost"
    subprocess.run([*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    settings = load_settings(port=0, tls_cert_file=cert, tls_key_file=key)
    with served(create_app(settings, detector_factory=lambda _: faulty), settings) as port:
        trusted = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=trusted) as client:
            assert client.get(f"https://127.0.0.1:{port}/readyz").status_code == 200
