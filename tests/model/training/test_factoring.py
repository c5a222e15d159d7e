"""fc6 of a trained detector is factored by a command."""

from pathlib import Path

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


def test_fc6_of_a_trained_detector_is_factored_by_a_command(shapes_folder: Path, tmp_path: Path) -> None:
    whole = FasterRCNN(LITE.with_classes(3))
    file, out = tmp_path / "whole.safetensors", tmp_path / "factored.safetensors"
    save(file, whole.state_dict(), preset="LITE", classes=("__background__", "disc", "square"), metrics={})
    command = ["factor", "--data", str(shapes_folder), "--weights", str(file), "--out", str(out), "--pictures", "4"]
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
