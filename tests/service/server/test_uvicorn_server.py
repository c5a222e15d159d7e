"""The server: failed starts with one sentence and an exit code; kept connections; TLS."""

import asyncio
import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import ssl
from unittest.mock import Mock

import httpx
import pytest
from starlette.responses import Response

from model.detector import CheckpointError, DeviceError
from service.app import create_app
from service.server.process import ForcedExit
from service.server.uvicorn_server import Server
from service.settings import SettingsError, load_settings
from tests.service.conftest import FaultyDetector
from tests.service.exchange import wait_for
from tests.service.image_processes import IMAGE_PROCESSES
from tests.service.memory_errors import CPU_OUT_OF_MEMORY, OUT_OF_MEMORY
from tests.service.server.conftest import running, served


class Failing(FaultyDetector):
    """Raises ``error`` in the step of that name: load, warm_up or detect."""

    def __init__(self, step: str, error: Exception) -> None:
        super().__init__()
        self.step, self.error = step, error
        self.raise_in("load")

    def raise_in(self, step: str) -> None:
        if step == self.step:
            raise self.error

    def warm_up(self) -> None:
        self.raise_in("warm_up")

    def detect(self, images, options):
        self.raise_in("detect")
        return super().detect(images, options)


class ProcessEnded(BaseException):
    """``os._exit`` was called, which waits for no thread."""


@pytest.fixture
def serve_until_exit(monkeypatch, caplog):
    """Serve with a detector that fails in ``step``; return the exit code and the errors that were logged."""

    def end_process(code: int) -> None:
        raise ProcessEnded(code)

    def serve(
        step: str, error: Exception, detector: type[Failing] = Failing, **overrides: object
    ) -> tuple[int, list[logging.LogRecord]]:
        monkeypatch.setattr(os, "_exit", end_process)
        monkeypatch.setattr(logging, "shutdown", lambda: None)
        monkeypatch.setattr("service.server.uvicorn_server.configure_malloc", lambda: False)
        monkeypatch.setattr("service.server.uvicorn_server.raise_file_limit", lambda: None)
        monkeypatch.setattr(ForcedExit, "start", lambda self: None)
        settings = load_settings(**({"port": 0} | overrides))
        asgi_app = create_app(
            settings, detector_factory=lambda _: detector(step, error), image_processes=IMAGE_PROCESSES
        )
        with pytest.raises(ProcessEnded) as ended:
            Server(asgi_app, settings).run_until_exit()
        return ended.value.args[0], [record for record in caplog.records if record.levelno >= logging.ERROR]

    return serve


@pytest.mark.parametrize(
    ("step", "error", "code", "phrases"),
    [
        ("load", OUT_OF_MEMORY, 1, ["The GPU ran out of memory while the weights were loaded", "nvidia-smi", "bf16"]),
        ("warm_up", OUT_OF_MEMORY, 1, ["The GPU ran out of memory while the detector warmed up", "smaller preset"]),
        ("detect", OUT_OF_MEMORY, 1, ["while the detector warmed up"]),  # the self-test
        ("load", CPU_OUT_OF_MEMORY, 1, ["This machine ran out of memory", "smaller preset"]),
        ("load", DeviceError("There is no device cuda:7: ..."), 2, ["There is no device cuda:7"]),
        ("load", CheckpointError("No checkpoint 'x'."), 2, ["No checkpoint 'x'."]),
        ("load", ValueError("precision fp16 is for GPUs"), 2, ["precision fp16 is for GPUs"]),
    ],
)
def test_a_failed_start_logs_one_sentence_and_has_an_exit_code(serve_until_exit, step, error, code, phrases):
    exit_code, errors = serve_until_exit(step, error)
    assert exit_code == code
    assert [record.name for record in errors] == ["frcnn.app", "uvicorn.error"]
    for phrase in phrases:
        assert phrase in errors[0].reason
    assert not any(record.exc_info or "Traceback" in record.getMessage() for record in errors)


def test_an_unexpected_failure_of_the_start_logs_its_traceback_once(serve_until_exit):
    exit_code, errors = serve_until_exit("load", RuntimeError("a fault"))
    assert exit_code == 1
    assert errors[0].exc_info
    assert not any("Traceback" in record.getMessage() for record in errors)


def test_a_failed_self_test_has_advice(serve_until_exit):
    class NotFinite(Failing):
        @staticmethod
        def _detections(size, batch_size):
            detections = FaultyDetector._detections(size, batch_size)
            detections.scores[0] = float("nan")
            return detections

    exit_code, errors = serve_until_exit("never", RuntimeError(), NotFinite)
    assert exit_code == 1
    assert "not the right one: the detector's numbers are not finite" in errors[0].reason
    assert "FRCNN_PRECISION=fp32" in errors[0].reason


def test_a_signal_while_the_detector_loads_ends_the_process_with_0(serve_until_exit):
    class Interrupted(Failing):
        def warm_up(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    assert serve_until_exit("never", RuntimeError(), Interrupted) == (0, [])


def test_a_port_in_use_ends_the_process_with_1(serve_until_exit):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        exit_code, errors = serve_until_exit("never", RuntimeError(), port=listener.getsockname()[1])
    assert exit_code == 1
    assert "address already in use" in errors[-1].reason


def test_a_missing_certificate_is_a_wrong_setting(tmp_path):
    settings = load_settings(tls_cert_file=tmp_path / "none.pem")
    with pytest.raises(SettingsError, match=r"FRCNN_TLS_CERT_FILE is '.*none\.pem'; it cannot be read"):
        Server(create_app(settings), settings)


def test_a_connection_is_kept_longer_than_clients_keep_it(faulty):
    # Otherwise a request that a client sends while the server closes would be lost: httpx waits 5 s, nginx 60.
    settings = load_settings(port=0)
    assert (
        Server(
            create_app(settings, detector_factory=lambda _: faulty, image_processes=IMAGE_PROCESSES), settings
        ).config.timeout_keep_alive
        > 60
    )


def test_tls_is_used_where_a_certificate_is_set(faulty, certificate):
    cert, key = certificate
    settings = load_settings(port=0, tls_cert_file=cert, tls_key_file=key)
    with served(
        create_app(settings, detector_factory=lambda _: faulty, image_processes=IMAGE_PROCESSES), settings
    ) as port:
        trusted = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=trusted) as client:
            assert client.get(f"https://127.0.0.1:{port}/readyz").status_code == 200


def test_at_the_end_unread_responses_are_dropped_and_unanswered_requests_get_503(faulty):
    settings = load_settings(port=0)
    app = create_app(settings, detector_factory=lambda _: faulty, image_processes=IMAGE_PROCESSES)

    async def never() -> None:
        await asyncio.Event().wait()

    app.add_api_route("/never", never)
    app.add_api_route("/large", lambda: Response(bytes(20_000_000)))
    server = Server(app, settings)
    server.config.timeout_graceful_shutdown = 0.3
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(running(server))
        unread, waiting = (stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(2))
        unread.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        waiting.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: server.server_state.total_requests == 1 and len(server.server_state.tasks) == 1)
        server.should_exit = True
        response = http.client.HTTPResponse(waiting)
        response.begin()
        assert (response.status, json.loads(response.read())["code"]) == (503, "unavailable")


def test_every_signal_sets_a_time_for_the_end(faulty):
    settings = load_settings(port=0, drain_seconds=20)

    def server(*, started: bool) -> tuple[Server, list[float]]:
        server = Server(create_app(settings, detector_factory=lambda _: faulty), settings)
        server.started, server._loop = started, Mock()
        times: list[float] = []
        server._forced_exit.within = lambda seconds, reason: times.append(seconds)  # type: ignore[method-assign]
        return server, times

    for started, expected in ((True, [28, 0]), (False, [5, 0])):
        subject, times = server(started=started)
        subject.handle_exit(signal.SIGTERM, None)
        subject.handle_exit(signal.SIGTERM, None)
        assert times == expected
