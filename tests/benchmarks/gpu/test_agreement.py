import math

import pytest
import torch

from benchmarks.gpu import agreement
from benchmarks.lib.contenders import DetectedBoxes


def test_answers_are_paired_by_class_place_and_score() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    expected = DetectedBoxes(boxes, torch.tensor([0.9, 0.6, 0.5]), torch.tensor([1, 2, 3]))
    near = DetectedBoxes(
        boxes + torch.tensor([[0.5], [0.0], [0.0]]), torch.tensor([0.88, 0.6, 0.1]), torch.tensor([1, 1, 3])
    )
    figures = agreement.compare([near], [expected])
    assert (figures["matched"], figures["only_here"], figures["only_there"]) == (1, 2, 2)
    assert figures["box_px"] == 0.5
    assert figures["score"] == pytest.approx(0.02)
    assert agreement.check_limits(figures, agreement.Limit(1, 0.1, 0.9)).get("status") is None
    over = agreement.check_limits(figures, agreement.Limit(0.4, 0.1, 0.9))
    assert over["error"] == "over the limit: box_px 0.5 (limit 0.4)"
    broken = DetectedBoxes(boxes * math.nan, expected.scores, expected.labels)
    with pytest.raises(AssertionError, match="not finite"):
        agreement.compare([broken], [expected])


def test_nothing_found_on_either_side_is_no_agreement() -> None:
    nothing = DetectedBoxes(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    figures = agreement.compare([nothing], [nothing])
    assert agreement.check_limits(figures, agreement.Limit(1, 1, 0.5))["status"] == "failed"
