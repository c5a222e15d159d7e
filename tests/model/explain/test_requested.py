"""Proposals and traces for the images whose options request them, within a batch."""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from model.detector import Detector
from model.structures import Detections, DetectOptions

CLASSES = ("__background__", "circle", "square", "star")
TRACED = DetectOptions(trace=True, proposals=1000)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random("LITE", classes=CLASSES, precision="fp32", device="cpu")


def _image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (150, 190, 3), dtype=np.uint8)


def _assert_equal(a: Detections, b: Detections) -> None:
    for name in ("boxes", "scores", "class_ids", "proposal_indices"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_a_trace_changes_the_detections_of_no_image_of_the_batch(detector: Detector) -> None:
    images = [_image(seed) for seed in range(3)]
    plain = DetectOptions(proposals=1000)
    without = detector.detect(images, plain)
    among = detector.detect(images, [plain, TRACED, plain])
    assert [answer.trace is not None for answer in among] == [False, True, False]
    assert among[1].batch_size == 3
    for before, after in zip(without, among, strict=True):
        _assert_equal(before, after)


def test_a_trace_costs_no_second_forward_pass(detector: Detector) -> None:
    model = detector.model
    with (
        patch.object(model.backbone, "forward", wraps=model.backbone.forward) as backbone,
        patch.object(model.rpn.head, "forward", wraps=model.rpn.head.forward) as head,
        patch.object(model.roi_heads, "forward", wraps=model.roi_heads.forward) as roi_head,
    ):
        detector.detect([_image(), _image(1)], [TRACED, DetectOptions()])
    assert (backbone.call_count, head.call_count, roi_head.call_count) == (1, 1, 1)


def test_no_trace_is_built_where_none_is_requested(detector: Detector) -> None:
    with patch("model.explain.requested.build_trace") as build_trace:
        (answer,) = detector.detect([_image()])
    build_trace.assert_not_called()
    assert answer.trace is None


def test_a_trace_has_the_detections_beyond_the_limit_too(detector: Detector) -> None:
    image = _image()
    (short,) = detector.detect([image], replace(TRACED, max_detections=3))
    (long,) = detector.detect([image], replace(TRACED, max_detections=10_000))
    assert len(short) == 3
    assert short.trace is not None
    assert short.trace.detected_pairs.tolist() == torch.stack((long.proposal_indices, long.class_ids), dim=1).tolist()


def test_a_trace_with_class_ids_is_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match="give no class_ids"):
        detector.detect([_image()], DetectOptions(trace=True, class_ids=(1,)))
