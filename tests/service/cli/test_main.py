"""The ``frcnn`` command: ``serve``, and what all commands have in common."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from service.cli.main import app
from service.settings import Settings

run = CliRunner().invoke


without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def test_serve_refuses_a_wrong_setting_with_its_range():
    done = run(app, ["serve", "--max-batch", "0"])
    assert done.exit_code == 2
    assert "FRCNN_MAX_BATCH is 0; it must be a whole number from 1 to 256" in " ".join(done.stderr.split())


def test_serve_has_an_option_for_every_setting():
    help_text = run(app, ["serve", "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in help_text


def test_a_detector_that_does_not_load_stops_the_start(repo, tmp_path):
    missing = tmp_path / "nothing.safetensors"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from service.cli.main import app; app()",
            "serve",
            "--port",
            "0",
            "--weights",
            str(missing),
        ],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr  # a restart would not help
    assert str(missing) in done.stderr
    assert "Traceback" not in done.stderr


@without_gpu
def test_serve_on_a_missing_gpu_ends_with_one_line(repo: Path):
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
def test_other_commands_on_a_missing_gpu_end_with_2_and_one_line(command, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = [] if command[0] == "train" else ["--weights", str(saved)]
    done = run(app, [*command, *weights, "--device", "cuda"])
    assert done.exit_code == 2, done.output
    assert "The device cuda cannot be used: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_ray_the_message_has_the_command_that_installs_it() -> None:
    program = "import sys; sys.modules['ray'] = None; from service.cli.main import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", "--ray"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'frcnn-service[ray]'" in done.stderr
    assert "Traceback" not in done.stderr
