"""The bounds of a connection: heads, framing of bodies, pipelines, idle and unread connections; unreadable requests."""

import asyncio
import contextlib
import http.client
import json
import re
import socket
import time

import httpx
import pytest
import uvicorn
from starlette.responses import Response

from service.app import create_app
from service.server.http_protocol import LimitedHttpProtocol
from service.settings import load_settings
from tests.service.exchange import wait_for
from tests.service.image_processes import IMAGE_PROCESSES
from tests.service.server.conftest import served

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


@pytest.fixture
def limits(monkeypatch):
    """Set limits of the protocol: ``limits(HEAD_SECONDS=0.5)``."""

    def set_limits(**values: float) -> None:
        for name, value in values.items():
            monkeypatch.setattr(LimitedHttpProtocol, name, value)

    set_limits(HEAD_SECONDS=0.5, LINGER_SECONDS=0.3)
    return set_limits


@pytest.fixture
def app(faulty):
    return create_app(
        load_settings(port=0, max_body_bytes=2**20), detector_factory=lambda _: faulty, image_processes=IMAGE_PROCESSES
    )


@pytest.fixture
def port(app, limits):
    with served(app, app.state.pipeline.settings) as port:
        yield port


@contextlib.contextmanager
def connected(port: int):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def read_response(connection: socket.socket) -> tuple[int, bytes]:
    """Return the status and the body of the next response, and read nothing of the one after it."""
    head = read_exactly(connection, 1)
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(connection, 1)
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return int(head.split()[1]), read_exactly(connection, int(length[1]))


def read_exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def read_to_the_end(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def upload(body: bytes, extra: bytes = b"", path: bytes = b"/detect") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (path, extra, len(body), body)


def inflight(app) -> float:
    return app.state.pipeline.metrics.registry.get_sample_value("frcnn_inflight")


# Heads


@pytest.mark.parametrize("head", [b"", b"\r\n", b"POST /detect HTTP/1.1\r\nHost: x\r\n"])
def test_a_slow_head_ends_the_connection(port, head):
    with connected(port) as connection:
        connection.sendall(head)
        assert connection.recv(100) == b""


def test_a_slow_head_behind_a_request_does_not_lose_its_response(port, faulty, small):
    faulty.delay = 0.8
    with connected(port) as connection:
        connection.sendall(upload(small) + LIVEZ[:20])
        assert read_response(connection)[0] == 200
        assert connection.recv(100) == b""


def test_a_large_head_ends_the_connection(port):
    with connected(port) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        endless = b"".join(b"X: %s\r\n" % (b"x" * 50_000) for _ in range(200))
        with pytest.raises(OSError, match=r"reset|pipe"):  # the server closes while the client still sends
            connection.sendall(endless)


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"nonsense\r\n\r\n", "not HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not HTTP"),
        (b"GET /\xe4 HTTP/1.1\r\nHost: x\r\n\r\n", "malformed"),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT is for proxies"),
        (b"POST /detect?regions=" + b"1" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "too long"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"1" * 500_000, "64 KiB"),
        (b"GET /livez HTTP/1.1\r\n" + b"a:b\r\n" * 300 + b"\r\n", "256 headers"),
        (CHUNKED + b"nonsense\r\n", "not HTTP"),
        (CHUNKED + b"1\r\na\r\n" * 5000, "small chunks"),
        (CHUNKED + b"1;x=" + b"y" * 600_000, "extensions or trailers"),
        (CHUNKED + (b"1;x=" + b"y" * 8000 + b"\r\na\r\n") * 80, "extensions or trailers"),
        (CHUNKED + b"1\r\na\r\n0\r\n" + b"a:b\r\n" * 9000, "trailers are over 8 KiB"),
    ],
    ids=[
        "no HTTP",
        "HTTP/2 preface",
        "address that is not ASCII",
        "CONNECT",
        "long address",
        "long head",
        "many headers",
        "broken chunk",
        "tiny chunks",
        "endless chunk extension",
        "long chunk extensions",
        "many trailers",
    ],
)
def test_a_request_that_cannot_be_read_is_a_problem_of_400(port, app, request_bytes, reason):
    with connected(port) as connection:
        connection.sendall(request_bytes)
        response = http.client.HTTPResponse(connection)
        response.begin()
        problem = json.loads(response.read())
        assert (response.status, problem["status"], problem["code"]) == (400, 400, "bad_request")
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["X-Request-ID"] == problem["request_id"]
        assert reason in problem["detail"]
        with contextlib.suppress(ConnectionResetError):  # where more was sent than is read
            assert connection.recv(100) == b"", "the connection ends"
    wait_for(lambda: inflight(app) == 0)


@pytest.mark.parametrize(
    "target",
    [b"*", b"http://x", b"//x/..%2f", b"/web/%00", b"/web/%ff", b"/web/" + b"a/" * 30_000, b"/web/%2e%2e/app.py"],
)
def test_no_target_is_an_unexpected_failure(port, target, caplog):
    for method in (b"GET", b"OPTIONS"):
        with connected(port) as connection:
            connection.sendall(b"%b %b HTTP/1.1\r\nHost: \xff[:x\r\n\r\n" % (method, target))
            assert read_response(connection)[0] in (200, 404, 405)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# Bodies


def test_trailers_and_chunk_extensions_within_the_bounds_are_read(port, small):
    body = b"".join(b"%x;a=b\r\n%b\r\n" % (len(small[i : i + 70]), small[i : i + 70]) for i in range(0, len(small), 70))
    with connected(port) as connection:
        connection.sendall(CHUNKED + body + b"0\r\nX-Checksum: 1\r\n\r\n" + LIVEZ)
        assert read_response(connection)[0] == 200
        assert read_response(connection)[0] == 200


@pytest.mark.parametrize("extra", [UPGRADE, b"Connection: upgrade\r\nUpgrade: websocket\r\n"], ids=["h2c", "websocket"])
@pytest.mark.parametrize("step", [None, 1, 7], ids=["at once", "byte by byte", "in small parts"])
def test_a_request_to_upgrade_is_answered_with_its_body_and_so_is_the_next(port, encoded, extra, step):
    data = upload(encoded((8, 8)), extra) + upload(b"GET /x HTTP/1.1\r\n\r\n", extra) + LIVEZ
    with connected(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), step or len(data)):
            connection.sendall(data[start : start + (step or len(data))])
        statuses = [read_response(connection)[0] for _ in range(3)]
        assert statuses == [200, 415, 200], "the second body is no image, and no request either"


def test_an_upgrade_keeps_the_length_of_a_chunked_body(port, encoded):
    image = encoded((8, 8))
    with connected(port) as connection:
        connection.sendall(CHUNKED[:-2] + UPGRADE + b"\r\n")
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(image), image) + LIVEZ)
        assert [read_response(connection)[0] for _ in range(2)] == [200, 200]


@pytest.mark.parametrize(("length", "extra"), [(3 * 2**20, b""), (3 * 2**20, b"Expect: 100-continue\r\n")])
def test_a_length_far_over_the_limit_is_413_before_the_body_is_sent(port, length, extra):
    with connected(port) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n" % (extra, length))
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 413")


def test_an_early_response_is_seen_by_a_client_that_still_sends(port, limits):
    limits(LINGER_SECONDS=10)
    with connected(port) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
        for _ in range(20):
            connection.sendall(bytes(10_000))
            time.sleep(0.005)
        assert read_response(connection)[0] == 413
        assert connection.recv(100) == b"", "and that nothing follows it"


def test_a_body_that_goes_on_after_its_response_ends_the_connection_by_bytes_and_by_time(port, limits):
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
    with connected(port) as connection:  # trickled
        connection.sendall(head + b"a")
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 404")
    limits(LINGER_SECONDS=60)
    with connected(port) as connection:
        connection.sendall(head)
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(bytes(50_000_000))


def test_a_connection_is_kept_where_the_body_is_complete_after_its_response(port):
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with connected(port) as connection:
        connection.sendall(head + b"a")
        assert read_response(connection)[0] == 404
        connection.sendall(bytes(99_999) + LIVEZ)
        assert read_response(connection)[0] == 200


def test_invalid_bytes_after_a_request_do_not_lose_its_response(port, faulty, small):
    faulty.delay = 0.5
    with connected(port) as connection:
        connection.sendall(upload(small))
        time.sleep(0.2)
        connection.sendall(b"nonsense\r\n\r\n")
        status, body = read_response(connection)
        assert status == 200
        assert len(json.loads(body)["boxes"]) == 1
        assert connection.recv(100) == b"", "the connection ends"


# Pipelines


def test_pipelined_requests_are_answered_in_order(port, small):
    with connected(port) as connection:
        connection.sendall((upload(small) + LIVEZ) * 4)
        bodies = [read_response(connection)[1] for _ in range(8)]
    assert [b'"boxes"' in body for body in bodies] == [True, False] * 4


def test_of_a_flood_of_pipelined_requests_the_first_are_answered_and_the_connection_ends(port):
    with connected(port) as connection:
        connection.sendall(LIVEZ * 5000)
        responses = read_to_the_end(connection)
    assert responses.count(b"HTTP/1.1 200") == responses.count(b"HTTP/1.1") == 1 + LimitedHttpProtocol.MAX_PIPELINED
    assert responses.count(b"connection: close") == 1


def test_a_client_that_leaves_ends_its_request_that_has_others_behind_it(port, app, faulty, small):
    faulty.gate.clear()
    with connected(port) as connection:
        connection.sendall(upload(small) * 3)
        wait_for(lambda: inflight(app) == 1)
    wait_for(lambda: inflight(app) == 0)
    faulty.gate.set()


# Connections that are kept


def test_a_slow_response_on_a_kept_connection_is_sent(port, faulty, small):
    faulty.delay = 0.7
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            assert client.post("/detect", content=small).status_code == 200


@pytest.mark.parametrize("stray", [b"", b"\r\n"])
def test_an_idle_connection_is_closed_whatever_was_sent_between_requests(port, app, monkeypatch, stray):
    original = LimitedHttpProtocol.connection_made

    def connection_made(self, transport):
        self.timeout_keep_alive = 0.3
        original(self, transport)

    monkeypatch.setattr(LimitedHttpProtocol, "connection_made", connection_made)
    with connected(port) as connection:
        connection.sendall(LIVEZ)
        assert read_response(connection)[0] == 200
        connection.sendall(stray)
        assert connection.recv(100) == b""


def test_the_head_of_the_next_request_has_its_own_time(port):
    with connected(port) as connection:
        connection.sendall(LIVEZ + LIVEZ[:5])
        assert read_response(connection)[0] == 200
        assert connection.recv(100) == b""


@pytest.fixture
def large_response(app):
    """Add a route whose response does not fit the sockets' buffers."""
    app.add_api_route("/large", lambda: Response(bytes(20_000_000)), methods=["GET"])
    return b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_a_client_that_does_not_read_is_disconnected_and_its_requests_end(large_response, port, app, limits, close):
    limits(UNREAD_SECONDS=0.3)
    with connected(port) as connection:
        connection.sendall((large_response[:-2] + close + b"\r\n") * 2)
        time.sleep(1)  # the kernel's buffers take some megabytes first
        assert inflight(app) == 0, "the second request waits, and holds nothing"
        with pytest.raises((ConnectionResetError, EOFError)):
            read_response(connection)


async def test_a_client_that_reads_slowly_is_not_disconnected():
    transport = Transport()
    state = uvicorn.server.ServerState()
    protocol = LimitedHttpProtocol(uvicorn.Config(lambda: None), state, {}, asyncio.get_running_loop())
    protocol.connection_made(transport)
    protocol.pause_writing()
    for _ in range(3):
        transport.unsent -= protocol.UNREAD_BYTES
        protocol._on_timer()
        assert not transport.aborted
    transport.unsent -= protocol.UNREAD_BYTES - 1
    protocol._on_timer()
    assert transport.aborted
    protocol.connection_lost(ConnectionResetError())
    assert protocol._timer is None


class Transport(asyncio.Transport):
    """A transport that only has a number of unsent bytes."""

    unsent = 1_000_000
    aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def test_unread_responses_have_one_bound_for_all_connections(large_response, port, limits):
    limits(ALL_UNREAD_BYTES=25_000_000)
    with connected(port) as first, connected(port) as second:
        for connection in (first, second):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.sendall(large_response)
            assert connection.recv(5) == b"HTTP/"
        assert read_response(second)[0] == 200
        with pytest.raises((ConnectionResetError, EOFError)):
            read_response(first)


# The number of connections


def test_at_the_limit_idle_connections_are_closed_and_then_new_ones_get_503(faulty, limits):
    limits(HEAD_SECONDS=20, SPARE_CONNECTIONS=1)
    settings = load_settings(port=0, max_connections=16)
    with (
        served(
            create_app(settings, detector_factory=lambda _: faulty, image_processes=IMAGE_PROCESSES), settings
        ) as port,
        contextlib.ExitStack() as stack,
    ):
        idle = stack.enter_context(connected(port))
        idle.sendall(LIVEZ)
        assert read_response(idle)[0] == 200
        busy = [stack.enter_context(connected(port)) for _ in range(16)]
        for connection in busy:
            connection.sendall(LIVEZ[:10])
        assert idle.recv(100) == b"", "an idle connection makes room"
        with connected(port) as refused:
            status, body = read_response(refused)
            assert (status, json.loads(body)["code"]) == (503, "unavailable")
            assert refused.recv(100) == b""
        for connection in busy:
            connection.sendall(LIVEZ[10:])
            assert read_response(connection)[0] == 200


def test_an_early_response_to_a_large_body_says_that_the_connection_ends(port):
    for length, closes in ((b"Content-Length: 500000", True), (b"Content-Length: 1000", False)):
        with connected(port) as connection:
            connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n\r\n")
            head = connection.recv(65536).lower()
            assert head.startswith(b"http/1.1 404")
            assert (b"connection: close" in head) == closes
