"""Connections over TLS that do not go on: before, in and after the handshake."""

import contextlib
import socket
import ssl

import httpx
import pytest

from service.app import create_app
from service.server.http_protocol import LimitedHttpProtocol
from service.server.tls_listener import TlsListener
from service.server.uvicorn_server import Server
from service.settings import load_settings
from tests.service.exchange import wait_for
from tests.service.image_processes import IMAGE_PROCESSES
from tests.service.server.conftest import running


@pytest.fixture
def server(faulty, certificate):
    cert, key = certificate
    settings = load_settings(port=0, tls_cert_file=cert, tls_key_file=key, max_connections=16)
    return Server(create_app(settings, detector_factory=lambda _: faulty, image_processes=IMAGE_PROCESSES), settings)


@pytest.fixture
def trusted(certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


def test_a_handshake_that_does_not_begin_ends(server, monkeypatch):
    monkeypatch.setattr(TlsListener, "HANDSHAKE_SECONDS", 0.2)
    with running(server) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        assert connection.recv(100) == b""


def test_at_the_limit_of_handshakes_the_oldest_gives_way(server, trusted):
    with running(server) as port, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(20)]
        with httpx.Client(verify=trusted) as client:
            assert client.get(f"https://127.0.0.1:{port}/livez").status_code == 200
        assert silent[0].recv(100) == b""


def test_a_handshake_of_another_protocol_is_closed_and_others_go_on(server, trusted):
    with running(server) as port, httpx.Client(verify=trusted) as client:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(1000):
                    pass
        assert client.get(f"https://127.0.0.1:{port}/livez").status_code == 200


def test_a_client_that_does_not_end_tls_is_disconnected(server, trusted, monkeypatch):
    monkeypatch.setattr(LimitedHttpProtocol, "UNREAD_SECONDS", 0.2)
    with running(server) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        tls = trusted.wrap_socket(connection, server_hostname="127.0.0.1", do_handshake_on_connect=True)
        tls.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert tls.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: not server.server_state.connections, 3)  # uvloop itself would wait for 5 s
        tls.close()


def test_a_port_in_use_is_an_error_of_the_start(server, caplog):
    with socket.create_server(("127.0.0.1", 0)) as other:
        server.config.port = other.getsockname()[1]
        server.run()
    assert not server.started
    assert any("in use" in getattr(record, "reason", "") for record in caplog.records)
