"""What a score is worth."""

from pathlib import Path

import numpy as np
import pytest

from model.training.data import Dataset, Sample
from model.training.scores import judge, report


def _dataset(*boxes: tuple[float, float, float, float], ignore: tuple[bool, ...] | None = None) -> Dataset:
    sample = Sample(
        path=Path("one.jpg"),
        image_id=1,
        width=100,
        height=100,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        class_ids=np.ones(len(boxes), np.int64),
        ignore=np.array(ignore or (False,) * len(boxes)),
        areas=np.ones(len(boxes), np.float32),
    )
    return Dataset((sample,), ("__background__", "thing"))


def _found(*rows: tuple[float, tuple[float, float, float, float]], class_id: int = 1):  # type: ignore[no-untyped-def]
    boxes = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for score, _ in rows], np.float32)
    return [(1, boxes, scores, np.full(len(rows), class_id))]


HERE, THERE = (0, 0, 10, 10), (50, 50, 70, 70)


def test_a_box_is_found_once_by_the_highest_score() -> None:
    scores, right = judge(_found((0.5, HERE), (0.9, HERE)), _dataset(HERE))
    assert dict(zip(np.round(scores, 2).tolist(), right.tolist(), strict=True)) == {0.9: True, 0.5: False}


def test_another_class_on_the_box_is_wrong() -> None:
    assert judge(_found((0.9, HERE), class_id=2), _dataset(HERE))[1].tolist() == [False]


def test_a_detection_on_an_ignored_box_is_not_judged() -> None:
    scores, _ = judge(_found((0.9, HERE), (0.8, THERE)), _dataset(HERE, THERE, ignore=(True, False)))
    assert np.round(scores, 2).tolist() == [0.8]


def test_the_threshold_is_where_f1_is_best() -> None:
    # 0.9 and 0.6 are right, 0.3 is wrong: between 0.6 and 0.3 everything is found and nothing is false.
    result = report(_found((0.9, HERE), (0.6, THERE), (0.3, (20, 0, 30, 10))), _dataset(HERE, THERE))
    assert result.threshold == pytest.approx(0.45)
    assert (result.precision, result.recall, result.f1, result.false_per_picture) == (1.0, 1.0, 1.0, 0.0)


def test_equal_scores_are_on_one_side_of_the_threshold() -> None:
    result = report(_found((0.5, HERE), (0.5, (20, 0, 30, 10))), _dataset(HERE))
    assert result.threshold < 0.5
    assert result.precision == 0.5


def test_the_calibration_error_is_the_gap_between_score_and_precision() -> None:
    # One bin at 0.85 with one of two right: |0.85 - 0.5|.
    result = report(_found((0.85, HERE), (0.85, (20, 0, 30, 10))), _dataset(HERE))
    assert result.calibration_error == pytest.approx(0.35, abs=1e-6)
    assert [b.detections for b in result.bins] == [0] * 8 + [2, 0]


def test_nothing_detected_has_no_scores_to_judge() -> None:
    with pytest.raises(ValueError, match="Nothing was detected"):
        report(_found(), _dataset(HERE))
