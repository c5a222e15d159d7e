"""A whole run by the command: a data set in, a checkpoint that serves out (docs/train-your-own.md)."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.data import load_dataset
from model.detector import Detector
from service.cli.main import app

run = CliRunner().invoke


QUICK = ["--start", "nothing", "--epochs", "0.5", "--batch-size", "4", "--validation", "0.2", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["joint", "alternating"])
def test_the_commands_of_the_guide_train_a_detector(shapes_folder: Path, tmp_path: Path, schedule: str) -> None:
    out = tmp_path / "run"
    train = ["train", "--data", str(shapes_folder), "--out", str(out), "--schedule", schedule, *QUICK]
    done = run(app, train)
    assert done.exit_code == 0, done.output
    file = out / "model.safetensors"
    detector = Detector.from_checkpoint(file)
    assert detector.info.classes == ("__background__", "disc", "square")
    assert set(detector.info.metrics) == {"validation_ap", "validation_ap50"}
    detector.detect([load_dataset(shapes_folder, "test").load(0)])
    figures = tmp_path / "test.json"
    judge = ["evaluate", "--data", str(shapes_folder), "--weights", str(file), "--json", str(figures)]
    judged = run(app, judge)
    assert judged.exit_code == 0, judged.output
    assert json.loads(figures.read_text())["images"] == 8
    # The same command again goes on, and there is nothing left to do.
    again = run(app, train)
    assert again.exit_code == 0, again.output
    assert "Going on from step" in again.output
    other = run(app, [*train, "--lr", "0.1"])
    assert other.exit_code == 1
    assert "another lr" in other.output
