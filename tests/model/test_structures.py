"""The structures of a trace: counts after each cut of the RPN, outcomes of the candidates, heat maps."""

import copy
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from model.detector import Detector
from model.presets import LITE
from model.structures import Detections, DetectOptions, Trace

TRACED = DetectOptions(trace=True, proposals=1000)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random("LITE", precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def detections(detector: Detector) -> Detections:
    return detector.detect([_image(150, 190)], TRACED)[0]


@pytest.fixture(scope="module")
def trace(detections: Detections) -> Trace:
    assert detections.trace is not None
    return detections.trace


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _config(detector: Detector, **changes: object):  # type: ignore[no-untyped-def]
    """Give the detector other thresholds within the context; its weights stay."""
    config = replace(detector.config, **changes)  # type: ignore[arg-type]
    model = detector.model
    return patch.multiple(model, config=config, rpn=_with(model.rpn, config.rpn))


def _with(rpn, config):  # type: ignore[no-untyped-def]
    other = copy.copy(rpn)
    other.config = config
    return other


def test_the_stage_counts_fall_and_end_in_the_proposals(detections: Detections, trace: Trace) -> None:
    counts = trace.stage_counts()
    assert [row.level for row in counts] == [0, 1, 2]
    for row, cells in zip(counts, trace.maps, strict=True):
        assert row.anchors == cells[0] * cells[1] * 6
        assert row.above_threshold == row.anchors  # LITE's threshold is 0
        assert row.after_top_k == min(row.anchors, LITE.rpn.pre_nms)
        assert row.after_top_k >= row.after_size >= row.after_nms >= row.kept
    assert detections.proposals is not None
    assert [row.kept for row in counts] == torch.bincount(detections.proposals.levels, minlength=3).tolist()
    assert sum(row.after_size for row in counts) == int(trace.valid.sum())


def test_the_stage_counts_show_what_the_threshold_cuts(detector: Detector) -> None:
    middle = 0.5
    with _config(detector, rpn=replace(LITE.rpn, score_threshold=middle, pre_nms=40)):
        trace = detector.detect([_image(150, 190)], TRACED)[0].trace
    assert trace is not None
    parts = trace.objectness.split(trace.anchor_counts)
    for row, part in zip(trace.stage_counts(), parts, strict=True):
        assert row.above_threshold == int((part >= middle).sum()) < row.anchors
        assert row.after_top_k == min(40, row.above_threshold)


def test_the_outcomes_of_the_candidates_sum_up_to_the_stage_counts(trace: Trace) -> None:
    outcomes, counts = trace.outcomes(), trace.stage_counts()
    assert len(outcomes) == len(trace.candidates)
    assert outcomes.count("low_objectness") == 0  # LITE's threshold is 0
    assert outcomes.count("kept") == sum(row.kept for row in counts)
    assert outcomes.count("proposal_limit") == sum(row.after_nms - row.kept for row in counts)
    assert outcomes.count("rpn_nms") == sum(row.after_size - row.after_nms for row in counts)
    assert outcomes.count("too_small") == sum(row.after_top_k - row.after_size for row in counts)


def test_a_heat_map_has_each_cells_likeliest_anchor_at_its_place(trace: Trace) -> None:
    for level, (rows, columns) in enumerate(trace.maps):
        heat = trace.heat_map(level)
        assert heat.values.shape == (rows, columns)
        start = sum(trace.anchor_counts[:level])
        row, column = rows - 1, columns // 2
        first = start + (row * columns + column) * 6
        assert heat.values[row, column] == trace.objectness[first : first + 6].max()
        x1, y1, x2, y2 = trace.anchors[first].tolist()
        assert (x1 + x2) / 2 == pytest.approx(heat.origin[0] + column * heat.step[0], abs=1e-2)
        assert (y1 + y2) / 2 == pytest.approx(heat.origin[1] + row * heat.step[1], abs=1e-2)


def test_an_image_without_proposals_has_a_trace_too(detector: Detector) -> None:
    with _config(detector, rpn=replace(LITE.rpn, score_threshold=1.0)):
        (answer,) = detector.detect([_image(50, 50)], TRACED)
    assert answer.trace is not None
    assert len(answer.trace.scores) == 0
    assert all(row.after_size == row.kept == 0 for row in answer.trace.stage_counts())
