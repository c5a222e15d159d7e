"""A start that fails: one sentence, no traceback where the sentence says all, and an exit code for the supervisor."""

import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from model.detector import CheckpointError, Detector, DeviceError, NotFiniteError
from model.structures import Detections
from service import app as service_app
from service.app import create_app
from service.cli.main import app
from service.inference.memory import is_out_of_memory
from service.server.uvicorn_server import Server
from service.settings import SettingsError, load_settings
from tests.service.conftest import CLASSES, FaultyDetector

run = CliRunner().invoke

OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15.77 GiB, of which 5 MiB is free."
)
CPU_OUT_OF_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000000 bytes.")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


class Failing(FaultyDetector):
    """Raises ``error`` in the step of that name: load, warm_up or detect."""

    def __init__(self, step: str, error: Exception) -> None:
        super().__init__()
        self.step, self.error = step, error
        self.do("load")

    def do(self, step: str) -> None:
        if step == self.step:
            raise self.error

    def warm_up(self) -> None:
        self.do("warm_up")

    def detect(self, images, options):
        self.do("detect")
        return super().detect(images, options)


@pytest.fixture
def end_of(monkeypatch, caplog):
    """Serve with a detector that fails in that step; returns the exit code and the errors that were logged."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    def serve(
        step: str, error: Exception, detector: type[Failing] = Failing, **settings: object
    ) -> tuple[int, list[logging.LogRecord]]:
        monkeypatch.setattr(os, "_exit", leave)
        monkeypatch.setattr(logging, "shutdown", lambda: None)
        monkeypatch.setattr("service.server.uvicorn_server.configure_malloc", lambda: False)
        chosen = load_settings(**({"port": 0} | settings))
        served = create_app(chosen, detector_factory=lambda _: detector(step, error))
        with pytest.raises(SystemExit) as ended:
            Server(served, chosen).run_to_the_end()
        return ended.value.code, [record for record in caplog.records if record.levelno >= logging.ERROR]

    return serve


@pytest.mark.parametrize(
    ("step", "error", "code", "words"),
    [
        ("load", OUT_OF_MEMORY, 1, ["The GPU ran out of memory while the weights were loaded", "nvidia-smi", "bf16"]),
        ("warm_up", OUT_OF_MEMORY, 1, ["The GPU ran out of memory while the detector warmed up", "smaller preset"]),
        ("detect", OUT_OF_MEMORY, 1, ["while the detector warmed up"]),  # the canary
        ("load", CPU_OUT_OF_MEMORY, 1, ["This machine ran out of memory", "smaller preset"]),
        ("load", DeviceError("There is no device cuda:7: ..."), 2, ["There is no device cuda:7"]),
        ("load", CheckpointError("No checkpoint 'x'."), 2, ["No checkpoint 'x'."]),
        ("load", ValueError("precision fp16 is for GPUs"), 2, ["precision fp16 is for GPUs"]),
    ],
)
def test_a_start_that_fails_says_why_in_one_sentence_and_the_code_says_if_a_restart_may_help(
    end_of, step, error, code, words
):
    ended, errors = end_of(step, error)
    assert ended == code
    assert [record.name for record in errors] == ["frcnn.app", "uvicorn.error"]
    for part in words:
        assert part in errors[0].reason
    assert not any(record.exc_info or "Traceback" in record.getMessage() for record in errors)


def test_a_start_that_fails_for_no_known_reason_shows_where(end_of):
    ended, errors = end_of("load", RuntimeError("a fault"))
    assert ended == 1
    assert errors[0].exc_info
    assert not any("Traceback" in record.getMessage() for record in errors)  # and not twice


def test_a_wrong_answer_to_the_canary_says_what_to_try(end_of):
    class Wrong(Failing):
        @staticmethod
        def _answer(size, batch_size):
            found = FaultyDetector._answer(size, batch_size)
            found.scores[0] = float("nan")
            return found

    ended, errors = end_of("never", RuntimeError(), Wrong)
    assert ended == 1
    assert "not the right one: the detector's numbers are not finite" in errors[0].reason
    assert "FRCNN_PRECISION=fp32" in errors[0].reason


def test_a_signal_while_it_loads_ends_it_with_0(end_of):
    class Interrupted(Failing):
        def warm_up(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    assert end_of("never", RuntimeError(), Interrupted) == (0, [])


def test_a_port_that_is_taken_ends_it_with_1(end_of):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended, errors = end_of("never", RuntimeError(), port=taken.getsockname()[1])
    assert ended == 1
    assert "address already in use" in str(errors[-1].msg)


def test_a_certificate_that_is_not_there_is_a_wrong_setting(tmp_path):
    settings = load_settings(tls_cert_file=tmp_path / "none.pem")
    with pytest.raises(SettingsError, match=r"FRCNN_TLS_CERT_FILE is '.*none\.pem'; it cannot be read"):
        Server(create_app(settings), settings)


@without_gpu
def test_serve_on_a_gpu_that_is_not_there_ends_at_once_with_one_line(repo: Path):
    command = [
        sys.executable,
        "-c",
        "from service.cli.main import app; app()",
        "serve",
        "--device",
        "cuda",
        "--port",
        "0",
    ]
    done = subprocess.run(
        [*command, "--log-format", "text"], cwd=repo, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert "the detector could not be started reason=The device cuda cannot be used: " in line
    assert "or choose the device cpu" in line
    assert done.stdout == ""


@without_gpu
@pytest.mark.parametrize(
    "command",
    [
        ["detect", "image.jpg"],
        ["evaluate", "--data", "nowhere"],
        ["train", "--data", "nowhere", "--out", "nothing"],
    ],
)
def test_the_other_commands_say_the_same_and_end_with_2(command, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = [] if command[0] == "train" else ["--weights", str(saved)]
    done = run(app, [*command, *weights, "--device", "cuda"])
    assert done.exit_code == 2, done.output
    assert "The device cuda cannot be used: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_detect_without_memory_says_what_to_do(monkeypatch, tmp_path, cat_jpeg):
    cat = tmp_path / "cat.jpg"
    cat.write_bytes(cat_jpeg)

    def no_memory(*_: object) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(service_app, "load_detector", no_memory)
    done = run(app, ["detect", str(cat)])
    assert done.exit_code == 1
    assert "The GPU ran out of memory while the weights were loaded" in done.stderr
    detector = Detector.random("LITE", classes=CLASSES)
    monkeypatch.setattr(detector, "detect", no_memory)
    monkeypatch.setattr(service_app, "load_detector", lambda _: detector)
    done = run(app, ["detect", str(cat)])
    assert done.exit_code == 1
    assert "cat.jpg: The GPU ran out of memory on this image" in done.stderr


def test_detect_goes_on_after_an_image_whose_values_are_not_finite(monkeypatch, tmp_path, cat_jpeg):
    for name in ("bad.jpg", "good.jpg"):
        (tmp_path / name).write_bytes(cat_jpeg)
    detector, answers = Detector.random("LITE", classes=CLASSES), iter(["bad", "good"])

    def overflow(images: object, options: object) -> list[Detections]:
        if next(answers) == "bad":
            raise NotFiniteError([None], "fp16")
        return [FaultyDetector._answer((300, 451), 1)]

    monkeypatch.setattr(detector, "detect", overflow)
    monkeypatch.setattr(service_app, "load_detector", lambda _: detector)
    done = run(app, ["detect", "--json", str(tmp_path / "bad.jpg"), str(tmp_path / "good.jpg")])
    assert done.exit_code == 1
    assert "bad.jpg: The network's values in fp16 are not finite" in done.stderr
    assert "FRCNN_PRECISION=bf16 or fp32" in done.stderr
    assert '"labels":["cat"]' in done.stdout.replace(" ", "")


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_training_and_evaluating_without_memory_say_what_to_do(monkeypatch, command):
    def no_memory(*_: object, **__: object) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr("model.training.run.train", no_memory)
    monkeypatch.setattr(Detector, "from_checkpoint", no_memory)
    done = run(app, [command, "--data", "x", *(["--out", "y"] if command == "train" else [])])
    assert done.exit_code == 1
    assert "The GPU ran out of memory" in done.stderr
    assert "smaller --batch-size" in done.stderr


def test_evaluating_values_that_are_not_finite_ends_with_a_sentence(monkeypatch):
    def overflow(*_: object, **__: object) -> None:
        raise NotFiniteError([None], "fp16")

    monkeypatch.setattr(Detector, "from_checkpoint", overflow)
    done = run(app, ["evaluate", "--data", "x"])
    assert done.exit_code == 1
    assert "The network's values in fp16 are not finite for 1 of 1 image(s)" in done.stderr


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (OUT_OF_MEMORY, True),
        (CPU_OUT_OF_MEMORY, True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("device-side assert triggered"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, memory):
    assert is_out_of_memory(error) is memory
