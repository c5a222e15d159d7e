"""The self-test passes a working detector and fails others."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from model.detector import Detector
from service.inference.self_test import TOLERANCES, ReferenceAnswer, SelfTest, SelfTestError, load_image, stored_answer


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random("LITE", seed=0)


def test_the_self_test_passes_a_working_detector_and_fails_other_weights(detector):
    self_test = SelfTest.prepare(detector)
    self_test.check(detector)
    with pytest.raises(SelfTestError, match="not found again"):
        self_test.check(Detector.random("LITE", seed=1))


BOX, NEIGHBOUR, ELSEWHERE = [0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 100.0, 80.0], [0.0, 0.0, 100.0, 40.0]


@pytest.mark.parametrize(
    ("proposals", "passes"),
    [
        ([(BOX, 0.72)], True),
        ([(NEIGHBOUR, 0.9), (BOX, 0.1)], True),
        ([(NEIGHBOUR, 0.3)], False),
        ([(ELSEWHERE, 0.9)], False),
    ],
    ids=["there", "replaced by a better neighbour", "a worse neighbour", "no neighbour"],
)
def test_a_neighbour_may_replace_a_proposal(proposals, passes, monkeypatch):
    boxes, objectness = [box for box, _ in proposals], [score for _, score in proposals]
    monkeypatch.setattr(
        "service.inference.self_test.run_detector", lambda *_: ReferenceAnswer([], [], [], objectness, boxes)
    )
    self_test = SelfTest(load_image(), ReferenceAnswer([], [], [], [0.7], [BOX]), TOLERANCES["bf16"])
    if passes:
        self_test.check(None)
    else:
        with pytest.raises(SelfTestError, match=r"the proposal at .* is not found again"):
            self_test.check(None)


def test_the_number_of_replaced_proposals_is_limited(monkeypatch):
    monkeypatch.setattr(
        "service.inference.self_test.run_detector", lambda *_: ReferenceAnswer([], [], [], [0.9], [NEIGHBOUR])
    )
    for flips, passes in ((5, True), (6, False)):
        reference = ReferenceAnswer([], [], [], [0.7] * flips, [BOX] * flips)
        self_test = SelfTest(load_image(), reference, TOLERANCES["bf16"])
        with contextlib.nullcontext() if passes else pytest.raises(SelfTestError):
            self_test.check(None)


def test_the_self_test_fails_scores_that_are_not_finite(detector, monkeypatch):
    self_test = SelfTest.prepare(detector)
    detect = detector.detect

    def broken(images, options):
        [detections] = detect(images, options)
        return [dataclasses.replace(detections, scores=torch.full_like(detections.scores, float("nan")))]

    monkeypatch.setattr(detector, "detect", broken)
    with pytest.raises(SelfTestError, match="not finite"):
        self_test.check(detector)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_bundled_weights_give_their_stored_answer(precision):
    """Store the answers of new weights with `python -m service.inference.self_test lite-voc20`."""
    detector = Detector.from_checkpoint("lite-voc20", precision=precision)
    assert stored_answer(detector.info.sha256) is not None
    SelfTest.prepare(detector).check(detector)
    assert load_image().shape == (213, 320, 3)
    assert load_image().dtype == np.uint8
