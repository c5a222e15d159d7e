"""fc6 of a trained detector is factored, and what cannot be factored is refused."""

from pathlib import Path

import pytest
import torch

from model.checkpoint import save
from model.data import Dataset, load_dataset
from model.detector import Detector
from model.evaluation.predictions import WHOLE_CURVE
from model.faster_rcnn import FasterRCNN
from model.presets import LITE
from model.training.factoring import factor_checkpoint


@pytest.fixture
def detector(tmp_path: Path) -> Detector:
    file = tmp_path / "whole.safetensors"
    state = FasterRCNN(LITE.with_classes(3)).state_dict()
    save(file, state, preset="LITE", classes=("__background__", "disc", "square"), metrics={})
    return Detector.from_checkpoint(file, precision="fp32")


@pytest.fixture
def shapes(shapes_folder: Path) -> Dataset:
    return load_dataset(shapes_folder, "train")


def test_a_factored_detector_is_smaller_and_scores_nearly_the_same(
    detector: Detector, shapes: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "factored.safetensors"
    _, parameters = factor_checkpoint(detector, shapes, 300, out, images=4)
    factored = Detector.from_checkpoint(out, precision="fp32")
    assert factored.config.roi_head.fc6_rank == 300
    assert factored.parameters == parameters < detector.parameters
    (expected,), (detections,) = (each.detect([shapes.load(0)], WHOLE_CURVE) for each in (detector, factored))
    torch.testing.assert_close(detections.scores[:5], expected.scores[:5], atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match="has no fc6 of full rank"):
        factor_checkpoint(factored, shapes, 200, tmp_path / "again.safetensors")


@pytest.mark.parametrize("rank", [0, 512])
def test_a_rank_out_of_range_is_refused(detector: Detector, shapes: Dataset, tmp_path: Path, rank: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 511"):
        factor_checkpoint(detector, shapes, rank, tmp_path / "factored.safetensors")
