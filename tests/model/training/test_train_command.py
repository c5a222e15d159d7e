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
from model.evaluation.coco import WHOLE_CURVE
from model.faster_rcnn import FasterRCNN
from model.training.data import load_dataset
from model.training.run import begin
from service.cli.main import app

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


def test_starting_from_a_detector_whose_fc6_is_in_two_layers_puts_them_together(tmp_path: Path) -> None:
    config = LITE.with_classes(3)
    parted = FasterRCNN(replace(config, roi_head=replace(config.roi_head, fc6_rank=8)))
    file = tmp_path / "parted.safetensors"
    save(file, parted.state_dict(), preset="LITE", classes=("__background__", "disc", "square"), metrics={})
    model = FasterRCNN(config)
    assert begin(model, str(file)) == "Starting from parted; 0 tensors start fresh."
    pooled = torch.randn(2, 128, 7, 7)
    with torch.inference_mode():
        expected, found = (one.eval().roi_heads.box_head(pooled) for one in (parted, model))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # the file holds float16


def test_fc6_of_a_trained_detector_is_parted_by_a_command(shapes_folder: Path, tmp_path: Path) -> None:
    whole = FasterRCNN(LITE.with_classes(3))
    file, out = tmp_path / "whole.safetensors", tmp_path / "parted.safetensors"
    save(file, whole.state_dict(), preset="LITE", classes=("__background__", "disc", "square"), metrics={})
    command = ["factor", "--data", str(shapes_folder), "--weights", str(file), "--out", str(out), "--pictures", "4"]
    done = run(app, [*command, "--rank", "300"])
    assert done.exit_code == 0, done.output
    dataset = load_dataset(shapes_folder, "test")
    before, after = (Detector.from_checkpoint(one, precision="fp32") for one in (file, out))
    assert after.info.parameters < before.info.parameters
    (expected,), (found,) = (one.detect([dataset.load(0)], WHOLE_CURVE) for one in (before, after))
    torch.testing.assert_close(found.scores[:5], expected.scores[:5], atol=1e-2, rtol=0)
    again = run(app, [*command[:4], str(out), *command[5:]])
    assert again.exit_code == 1
    assert "has no fc6 of full rank" in again.output
