"""Matching of detections, thresholds and reliability, against cases worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from model.data import Dataset, Sample
from model.evaluation.operating_points import (
    IGNORED,
    WRONG,
    build_score_report,
    expected_calibration_error,
    judge_detections,
    match_detections,
    operating_point,
    precision_recall_curve,
    reliability_bins,
)


def _dataset(*boxes: tuple[float, float, float, float], ignore: tuple[bool, ...] | None = None) -> Dataset:
    sample = Sample(
        path=Path("image.jpg"),
        image_id=1,
        width=100,
        height=100,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        class_ids=np.ones(len(boxes), np.int64),
        ignore=np.array(ignore or (False,) * len(boxes)),
        areas=np.ones(len(boxes), np.float32),
    )
    return Dataset((sample,), ("__background__", "thing"))


def _predictions(*rows: tuple[float, tuple[float, float, float, float]], class_id: int = 1):  # type: ignore[no-untyped-def]
    boxes = np.array([box for _, box in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for score, _ in rows], np.float32)
    return [(1, boxes, scores, np.full(len(rows), class_id))]


BOX, OTHER_BOX, ELSEWHERE = (0, 0, 10, 10), (50, 50, 70, 70), (20, 0, 30, 10)


def test_a_box_is_matched_once_by_the_highest_score() -> None:
    scores, right = judge_detections(_predictions((0.5, BOX), (0.9, BOX)), _dataset(BOX))
    assert np.round(scores, 2).tolist() == [0.5, 0.9]
    assert right.tolist() == [False, True]


def test_another_class_on_the_box_is_wrong() -> None:
    assert judge_detections(_predictions((0.9, BOX), class_id=2), _dataset(BOX))[1].tolist() == [False]


def test_a_detection_on_an_ignored_box_is_not_judged() -> None:
    dataset = _dataset(BOX, OTHER_BOX, ignore=(True, False))
    scores, _ = judge_detections(_predictions((0.9, BOX), (0.8, OTHER_BOX)), dataset)
    assert np.round(scores, 2).tolist() == [0.8]


def test_each_detection_is_matched_to_a_box() -> None:
    (sample,) = _dataset(BOX, OTHER_BOX, (80, 80, 90, 90), ignore=(False, False, True)).samples
    boxes = np.array([OTHER_BOX, BOX, (80, 80, 90, 90), (20, 0, 30, 10)], np.float32)
    assert match_detections(boxes, [0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1], sample).tolist() == [1, 0, IGNORED, WRONG]


def test_the_best_threshold_is_where_f1_is_best() -> None:
    # 0.9 and 0.6 are right, 0.3 is wrong: between 0.6 and 0.3 all boxes are detected and nothing is false.
    predictions = _predictions((0.9, BOX), (0.6, OTHER_BOX), (0.3, ELSEWHERE))
    best = build_score_report(predictions, _dataset(BOX, OTHER_BOX)).best
    assert best.threshold == pytest.approx(0.45)
    assert (best.precision, best.recall, best.f1, best.false_per_image) == (1.0, 1.0, 1.0, 0.0)


def test_equal_scores_are_on_one_side_of_the_threshold() -> None:
    best = build_score_report(_predictions((0.5, BOX), (0.5, ELSEWHERE)), _dataset(BOX)).best
    assert best.threshold < 0.5
    assert best.precision == 0.5


def test_a_threshold_that_was_chosen_elsewhere_is_judged_as_it_is() -> None:
    predictions = _predictions((0.9, BOX), (0.8, ELSEWHERE), (0.6, OTHER_BOX))
    result = build_score_report(predictions, _dataset(BOX, OTHER_BOX), threshold=0.7)
    assert result.served is not None
    assert (result.served.threshold, result.served.precision, result.served.recall) == (0.7, 0.5, 0.5)
    assert result.served.false_per_image == 1.0
    assert result.best.threshold != 0.7


def test_a_score_must_be_above_the_threshold_as_in_the_detector() -> None:
    assert operating_point(np.array([0.5]), np.array([True]), 1, 1, 0.5).recall == 0.0


def test_the_curve_has_a_point_for_each_different_score() -> None:
    curve = precision_recall_curve(np.array([0.5, 0.9, 0.5]), np.array([True, True, False]), 4)
    assert curve.lowest.tolist() == [0.9, 0.5]
    assert curve.precision == pytest.approx([1, 2 / 3])
    assert curve.recall == pytest.approx([1 / 4, 2 / 4])
    assert curve.f1 == pytest.approx([2 / 5, 4 / 7])


def test_the_calibration_error_is_the_gap_between_score_and_precision() -> None:
    # One bin at 0.85 with one of two right: |0.85 - 0.5|.
    result = build_score_report(_predictions((0.85, BOX), (0.85, ELSEWHERE)), _dataset(BOX))
    assert result.calibration_error == pytest.approx(0.35, abs=1e-6)
    assert [b.detections for b in result.bins] == [0] * 8 + [2, 0]


def test_the_calibration_error_weighs_bins_by_their_detections() -> None:
    # 0.15 wrong three times, a gap of 0.15; 0.95 right once, a gap of 0.05.
    scores, right = np.array([0.15, 0.15, 0.15, 0.95]), np.array([False, False, False, True])
    assert expected_calibration_error(scores, right) == pytest.approx((3 * 0.15 + 0.05) / 4)


def test_a_score_of_one_is_in_the_last_bin() -> None:
    assert [b.detections for b in reliability_bins(np.array([1.0, 0.9, 0.0]), np.ones(3, bool))] == [1] + [0] * 8 + [2]


def test_nothing_detected_has_no_scores_to_judge() -> None:
    with pytest.raises(ValueError, match="Nothing was detected"):
        build_score_report(_predictions(), _dataset(BOX))
