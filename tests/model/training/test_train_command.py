"""docs/train-your-own.md, end to end: pictures in, a checkpoint that serves out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from model.checkpoint import save
from model.config import LITE
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.training.data import load_dataset
from model.training.run import begin
from service.cli import app

run = CliRunner().invoke
QUICK = ["--start", "nothing", "--epochs", "0.5", "--batch-size", "4", "--validation", "0.2", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["joint", "alternating"])
def test_the_guides_commands_make_a_checkpoint_that_detects(shapes_folder: Path, tmp_path: Path, schedule: str) -> None:
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
    assert json.loads(figures.read_text())["pictures"] == 8
    # The same command again goes on, and there is nothing left to do.
    again = run(app, train)
    assert again.exit_code == 0, again.output
    assert "Going on from step" in again.output
    other = run(app, [*train, "--lr", "0.1"])
    assert other.exit_code == 1
    assert "another lr" in other.output


def test_starting_from_a_detector_whose_fc6_is_one_layer_parts_it(tmp_path: Path) -> None:
    config = LITE.with_classes(3)
    whole = FasterRCNN(replace(config, roi_head=replace(config.roi_head, fc6_rank=None)))
    file = tmp_path / "whole.safetensors"
    save(file, whole.state_dict(), preset="LITE", classes=("__background__", "circle", "square"), metrics={})
    model = FasterRCNN(config)
    assert begin(model, str(file)) == "Starting from whole; 0 tensors start fresh."
    assert model.state_dict()["roi_heads.box_head.fc6.0.weight"].shape == (128, 128 * 7 * 7)
    bias = whole.state_dict()["roi_heads.box_head.fc6.bias"]
    torch.testing.assert_close(model.state_dict()["roi_heads.box_head.fc6.1.bias"], bias)
