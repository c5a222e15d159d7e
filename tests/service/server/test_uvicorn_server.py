"""A start that fails: one sentence, no traceback where the sentence says all, and an exit code for the supervisor."""

import logging
import os
import signal
import socket

import pytest

from model.detector import CheckpointError, DeviceError
from service.app import create_app
from service.server.uvicorn_server import Server
from service.settings import SettingsError, load_settings
from tests.service.conftest import FaultyDetector
from tests.service.memory_errors import CPU_OUT_OF_MEMORY, OUT_OF_MEMORY


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


@pytest.fixture
def serve_until_exit(monkeypatch, caplog):
    """Serve with a detector that fails in ``step``; return the exit code and the errors that were logged."""

    def raise_system_exit(code: int) -> None:
        raise SystemExit(code)

    def serve(
        step: str, error: Exception, detector: type[Failing] = Failing, **overrides: object
    ) -> tuple[int, list[logging.LogRecord]]:
        monkeypatch.setattr(os, "_exit", raise_system_exit)
        monkeypatch.setattr(logging, "shutdown", lambda: None)
        monkeypatch.setattr("service.server.uvicorn_server.configure_malloc", lambda: False)
        settings = load_settings(**({"port": 0} | overrides))
        asgi_app = create_app(settings, detector_factory=lambda _: detector(step, error))
        with pytest.raises(SystemExit) as exit_info:
            Server(asgi_app, settings).run_until_exit()
        return exit_info.value.code, [record for record in caplog.records if record.levelno >= logging.ERROR]

    return serve


@pytest.mark.parametrize(
    ("step", "error", "code", "words"),
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
def test_a_start_that_fails_says_why_in_one_sentence_and_the_code_says_if_a_restart_may_help(
    serve_until_exit, step, error, code, words
):
    exit_code, errors = serve_until_exit(step, error)
    assert exit_code == code
    assert [record.name for record in errors] == ["frcnn.app", "uvicorn.error"]
    for part in words:
        assert part in errors[0].reason
    assert not any(record.exc_info or "Traceback" in record.getMessage() for record in errors)


def test_a_start_that_fails_for_no_known_reason_shows_where(serve_until_exit):
    exit_code, errors = serve_until_exit("load", RuntimeError("a fault"))
    assert exit_code == 1
    assert errors[0].exc_info
    assert not any("Traceback" in record.getMessage() for record in errors)  # and not twice


def test_a_failed_self_test_says_what_to_try(serve_until_exit):
    class Wrong(Failing):
        @staticmethod
        def _detections(size, batch_size):
            detections = FaultyDetector._detections(size, batch_size)
            detections.scores[0] = float("nan")
            return detections

    exit_code, errors = serve_until_exit("never", RuntimeError(), Wrong)
    assert exit_code == 1
    assert "not the right one: the detector's numbers are not finite" in errors[0].reason
    assert "FRCNN_PRECISION=fp32" in errors[0].reason


def test_a_signal_while_it_loads_ends_it_with_0(serve_until_exit):
    class Interrupted(Failing):
        def warm_up(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    assert serve_until_exit("never", RuntimeError(), Interrupted) == (0, [])


def test_a_port_that_is_taken_ends_it_with_1(serve_until_exit):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        exit_code, errors = serve_until_exit("never", RuntimeError(), port=listener.getsockname()[1])
    assert exit_code == 1
    assert "address already in use" in str(errors[-1].msg)


def test_a_certificate_that_is_not_there_is_a_wrong_setting(tmp_path):
    settings = load_settings(tls_cert_file=tmp_path / "none.pem")
    with pytest.raises(SettingsError, match=r"FRCNN_TLS_CERT_FILE is '.*none\.pem'; it cannot be read"):
        Server(create_app(settings), settings)
