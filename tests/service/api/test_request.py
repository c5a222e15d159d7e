"""Reading a request: limits of size and time, and clients that leave."""

import contextlib
import http.client
import socket

import httpx
import pytest

from tests.service.exchange import address, check_problem, hold, queued, wait_for, waiting

pytestmark = pytest.mark.usefixtures("next_request_is_served")


def test_a_body_in_chunks_without_a_length_is_read(service, cat_jpeg):
    def chunks():
        for start in range(0, len(cat_jpeg), 5000):
            yield cat_jpeg[start : start + 5000]

    assert service.client.post("/detect", content=chunks(), headers={"Content-Type": "image/jpeg"}).status_code == 200


def test_a_body_over_the_limit_is_413_by_its_announced_length(service):
    check_problem(service.detect(b"\xff\xd8\xff" + bytes(5 * 2**20)), 413, "4194304 bytes")


def test_a_body_over_the_limit_is_413_while_it_streams(service):
    sent = 0

    def endless():
        nonlocal sent
        while sent < 100 * 2**20:
            sent += 2**16
            yield bytes(2**16)

    with contextlib.suppress(httpx.TransportError):  # the server may close before the client has read the response
        check_problem(service.client.post("/detect", content=endless()), 413)
    assert sent < 50 * 2**20, "the whole body was read"


def test_a_client_that_disconnects_during_its_body_leaves_nothing_behind(service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")


def test_two_images_for_detect_are_422_and_the_message_names_the_batch_route(service, encoded):
    parts = [("image", encoded()), ("image", encoded())]
    check_problem(service.client.post("/detect", files=parts), 422, "/detect/batch")


def test_a_slow_body_has_a_time_limit_of_its_own(serve_faulty, small):
    with serve_faulty(body_seconds=0.3) as live:
        connection = http.client.HTTPConnection(*address(live), timeout=10)
        connection.putrequest("POST", "/detect")
        connection.putheader("Content-Length", str(len(small)))
        connection.endheaders(small[:10])
        response = connection.getresponse()
        assert response.status == 408
        assert b"slow_body" in response.read()
        connection.close()
        assert live.app.state.handler.body_budget.reserved == 0
        assert live.detect(small).status_code == 200


def test_the_bytes_of_all_bodies_are_bounded_and_released(serve_faulty, small):
    with serve_faulty(max_bodies_bytes=4096) as live:
        with socket.create_connection(address(live)) as other_client:
            other_client.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + bytes(4090))
            wait_for(lambda: live.app.state.handler.body_budget.reserved == 4090)
            refusal = live.detect(small)
            assert refusal.status_code == 429
            assert int(refusal.headers["retry-after"]) >= 1
        wait_for(lambda: live.app.state.handler.body_budget.reserved == 0)
        assert live.detect(small).status_code == 200


def test_the_image_of_a_disconnected_client_does_not_reach_the_device(serve_faulty, faulty, clients, small, large):
    with serve_faulty() as live:
        first = hold(clients, live, faulty, small)
        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(large)}\r\n\r\n".encode()
            connection.sendall(head + large)
            wait_for(lambda: queued(live) == 1)
        wait_for(lambda: queued(live) == 0)
        faulty.gate.set()
        assert first.result().status_code == 200
        assert [(30, 120)] not in faulty.batches
        assert live.metric("frcnn_requests_total", route="/detect", status="499") == 1
        assert waiting(live) == 0


def exchange(url: str, request: bytes) -> bytes:
    target = httpx.URL(url)
    with socket.create_connection((target.host, target.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        response = b""
        while part := connection.recv(65536):
            response += part
    return response


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
def test_a_request_with_a_wrong_length_is_refused_or_dropped(service, request_bytes):
    response = exchange(service.url, request_bytes)
    assert not response.startswith(b"HTTP/1.1 5")
    assert not response.startswith(b"HTTP/1.1 200")
    assert service.client.get("/readyz").json() == {"status": "ready"}
