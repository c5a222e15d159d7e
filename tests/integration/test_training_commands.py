"""The commands of training: ``frcnn train`` and ``evaluate`` of docs/train-your-own.md, and ``frcnn factor``."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from model.checkpoint import save
from model.data import load_dataset
from model.detector import Detector
from model.evaluation.predictions import WHOLE_CURVE
from model.faster_rcnn import FasterRCNN
from model.presets import LITE
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


def test_fc6_of_a_trained_detector_is_factored_by_a_command(shapes_folder: Path, tmp_path: Path) -> None:
    whole = FasterRCNN(LITE.with_classes(3))
    file, out = tmp_path / "whole.safetensors", tmp_path / "factored.safetensors"
    save(file, whole.state_dict(), preset="LITE", classes=("__background__", "disc", "square"), metrics={})
    command = ["factor", "--data", str(shapes_folder), "--weights", str(file), "--out", str(out), "--images", "4"]
    done = run(app, [*command, "--rank", "300"])
    assert done.exit_code == 0, done.output
    dataset = load_dataset(shapes_folder, "test")
    before, after = (Detector.from_checkpoint(path, precision="fp32") for path in (file, out))
    assert after.info.parameters < before.info.parameters
    (expected,), (detections,) = (detector.detect([dataset.load(0)], WHOLE_CURVE) for detector in (before, after))
    torch.testing.assert_close(detections.scores[:5], expected.scores[:5], atol=1e-2, rtol=0)
    again = run(app, [*command[:4], str(out), *command[5:]])
    assert again.exit_code == 1
    assert "has no fc6 of full rank" in again.output
