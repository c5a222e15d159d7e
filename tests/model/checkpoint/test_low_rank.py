"""fc6 as one layer and as two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.presets import LITE
from tests.model.checkpoint.states import CLASSES, PRESET


def _of_rank(rank: int | None) -> FasterRCNN:
    config = LITE.with_classes(len(CLASSES))
    return FasterRCNN(replace(config, roi_head=replace(config.roi_head, fc6_rank=rank))).eval()


@pytest.mark.parametrize("rank", [None, 5], ids=["one layer", "rank 5"])
def test_the_rank_of_fc6_follows_from_the_file(rank: int | None, tmp_path: Path) -> None:
    checkpoint.save(
        tmp_path / "weights.safetensors", _of_rank(rank).state_dict(), preset=PRESET, classes=CLASSES, metrics={}
    )
    detector = Detector.from_checkpoint(tmp_path / "weights.safetensors", precision="fp32")
    assert detector.config.roi_head.fc6_rank == rank


def test_the_factored_fc6_has_the_least_error_of_its_rank() -> None:
    whole = _of_rank(None)
    inputs = torch.randn(600, 30) @ torch.randn(30, LITE.fpn_channels * 49) / 30  # of rank 30, with noise
    inputs += 0.01 * torch.randn_like(inputs)
    with torch.inference_mode():
        expected = whole.roi_heads.box_head.fc6(inputs).double()
    mean, covariance = expected.mean(dim=0), torch.cov(expected.T, correction=0)

    def error(rank: int) -> float:
        factored = _of_rank(rank)
        state = checkpoint.factor_fc6(whole.state_dict(), rank, mean, covariance, torch.ones(512).double())
        factored.load_state_dict(state)
        with torch.inference_mode():
            outputs = factored.roi_heads.box_head.fc6(inputs).double()
        return float((outputs - expected).square().sum() / len(expected))

    variances = torch.linalg.eigvalsh(covariance).flip(0)
    for rank in (10, 20):
        assert error(rank) == pytest.approx(float(variances[rank:].sum()), rel=1e-3)
    assert error(30) < 0.1 * error(20)


def test_the_merged_fc6_gives_the_same_output() -> None:
    factored, pooled = _of_rank(20), torch.randn(3, LITE.fpn_channels, 7, 7)
    whole = _of_rank(None)
    whole.load_state_dict(checkpoint.merge_fc6(factored.state_dict()))
    with torch.inference_mode():
        expected, output = factored.roi_heads.box_head(pooled), whole.roi_heads.box_head(pooled)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
