"""The forward pass with regions of the caller, for which the RPN does not run, through ``Detector.detect``."""

import numpy as np
import pytest
import torch

from model.detector import Detector
from model.structures import DetectOptions

CLASSES = ("__background__", "circle", "square", "star")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random("LITE", classes=CLASSES, precision="fp32")


def _image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (180, 240, 3), dtype=np.uint8)


def test_the_rpns_own_proposals_as_regions_give_the_same_detections(detector: Detector) -> None:
    (detections,) = detector.detect([_image()], DetectOptions(proposals=1000))
    assert detections.proposals is not None
    (again,) = detector.detect([_image()], regions=[detections.proposals.boxes])
    torch.testing.assert_close(again.boxes, detections.boxes, atol=1e-2, rtol=0)
    torch.testing.assert_close(again.scores, detections.scores, atol=1e-4, rtol=0)
    assert again.proposals is None


def test_the_rpn_does_not_run_for_images_with_regions(detector: Detector) -> None:
    batch_sizes: list[int] = []
    head = detector.model.rpn.head
    hook = head.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0][0])))
    try:
        detector.detect([_image(0), _image(1)], regions=[[[10, 10, 90, 90]], [[20, 20, 100, 100]]])
        assert batch_sizes == []
        detector.detect([_image(0), _image(1), _image(2)], regions=[None, [[20, 20, 100, 100]], None])
        assert batch_sizes == [2]
    finally:
        hook.remove()


def test_images_with_regions_are_a_batch_of_their_own_and_answers_keep_their_order(detector: Detector) -> None:
    images = [_image(seed) for seed in range(3)]
    regions = [[30.0, 40.0, 150.0, 160.0], [5.0, 5.0, 60.0, 70.0]]
    options = [DetectOptions(), DetectOptions(), DetectOptions(proposals=5)]
    mixed = detector.detect(images, options, [None, regions, None])
    assert [detections.batch_size for detections in mixed] == [2, 1, 2]
    alone = [
        *detector.detect([images[0]]),
        *detector.detect([images[1]], regions=[regions]),
        *detector.detect([images[2]], DetectOptions(proposals=5)),
    ]
    for expected, detections in zip(alone, mixed, strict=True):
        torch.testing.assert_close(detections.boxes, expected.boxes, atol=1e-2, rtol=0)
    assert mixed[2].proposals is not None
    assert alone[2].proposals is not None
    torch.testing.assert_close(mixed[2].proposals.boxes, alone[2].proposals.boxes, atol=1e-2, rtol=0)
    assert set(mixed[1].proposal_indices.tolist()) <= {0, 1}
    assert "rpn" not in mixed[1].timings


def test_a_trace_in_a_mixed_batch_is_of_its_own_image(detector: Detector) -> None:
    options = [DetectOptions(), DetectOptions(trace=True)]
    mixed = detector.detect([_image(0), _image(1)], options, [[[5, 5, 60, 70]], None])
    (alone,) = detector.detect([_image(1)], DetectOptions(trace=True))
    assert mixed[1].trace is not None
    assert alone.trace is not None
    torch.testing.assert_close(mixed[1].trace.objectness, alone.trace.objectness, atol=1e-4, rtol=0)


def test_no_regions_give_no_detections(detector: Detector) -> None:
    (detections,) = detector.detect([_image()], regions=[torch.zeros(0, 4)])
    assert len(detections) == 0
