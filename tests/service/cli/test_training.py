"""``frcnn train``, ``evaluate`` and ``calibrate``: their errors, and the file of quantization ranges."""

import json

import pytest
from typer.testing import CliRunner

from model.detector import Detector, NotFiniteError
from service.cli.main import app
from tests.service.memory_errors import OUT_OF_MEMORY

run = CliRunner().invoke


def test_calibrate_writes_what_int8_needs(cat_file, saved):
    assert run(app, ["calibrate", str(cat_file.parent), "--weights", str(saved)]).exit_code == 0
    assert json.loads(saved.with_suffix(".ranges.json").read_text())["images"] == 1
    detector = Detector.from_checkpoint(saved, precision="int8")
    assert detector.info.precision == "int8"


def test_calibrate_uses_count_images(cat_file, saved):
    for number in range(5):
        cat_file.with_name(f"{number}.jpg").write_bytes(cat_file.read_bytes())
    assert run(app, ["calibrate", str(cat_file.parent), "--weights", str(saved), "--count", "3"]).exit_code == 0
    assert json.loads(saved.with_suffix(".ranges.json").read_text())["images"] == 3


def test_calibrate_says_what_is_wrong_with_its_images(cat_file, saved, tmp_path):
    command = ["calibrate", "--weights", str(saved)]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(cat_file.read_bytes()[:500])
    done = run(app, [*command, str(broken)])
    assert done.exit_code == 1
    assert "broken.jpg" in done.output.replace("\n", "")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(app, [*command, str(empty)])
    assert done.exit_code == 1
    assert "There are no " in done.output
    assert not saved.with_suffix(".ranges.json").exists()


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
