"""Traces agree with the detections: from anchors to proposals, candidates and refined boxes."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from model import boxes as box_ops
from model.detector import Detector
from model.presets import LITE
from model.structures import Detections, DetectOptions, Trace

CLASSES = ("__background__", "circle", "square", "star")
TRACED = DetectOptions(trace=True, proposals=1000)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random("LITE", classes=CLASSES, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def detections(detector: Detector) -> Detections:
    return detector.detect([_image()], TRACED)[0]


@pytest.fixture(scope="module")
def trace(detections: Detections) -> Trace:
    assert detections.trace is not None
    return detections.trace


def _image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (150, 190, 3), dtype=np.uint8)


def test_a_proposals_box_is_its_anchor_moved_by_its_deltas(detections: Detections) -> None:
    proposals = detections.proposals
    assert proposals is not None
    decoded = box_ops.clip(box_ops.decode(proposals.deltas, proposals.anchors), 150.0, 190.0)
    torch.testing.assert_close(decoded, proposals.boxes, atol=1e-2, rtol=0)


def test_a_detection_is_its_refined_proposal_whose_anchor_lies_at_its_location(
    detections: Detections, trace: Trace
) -> None:
    proposals = detections.proposals
    assert proposals is not None
    assert proposals.locations is not None
    assert len(detections) > 0
    assert torch.equal(trace.refined[detections.proposal_indices, detections.class_ids], detections.boxes)
    assert torch.equal(trace.scores[detections.proposal_indices, detections.class_ids], detections.scores)
    assert torch.equal(trace.anchors[proposals.anchor_indices], proposals.anchors)
    assert torch.equal(proposals.locations.levels, proposals.levels)
    centres = (proposals.anchors[:, :2] + proposals.anchors[:, 2:]) / 2
    steps = torch.tensor(trace.steps)[proposals.levels]
    cells = torch.stack((proposals.locations.columns, proposals.locations.rows), dim=1)
    torch.testing.assert_close(centres, cells * steps, atol=1e-2, rtol=0)


def test_the_candidates_hold_the_final_proposals_in_their_order(detections: Detections, trace: Trace) -> None:
    final = trace.candidates[trace.final_rows]
    assert detections.proposals is not None
    assert len(final) == len(detections.proposals) == len(trace.scores) == len(trace.refined)
    for field in fields(final):
        if field.name != "locations":
            assert torch.equal(getattr(final, field.name), getattr(detections.proposals, field.name)), field.name


def test_ranks_and_objectness_are_those_of_every_anchor(trace: Trace) -> None:
    candidates = trace.candidates
    torch.testing.assert_close(trace.objectness[candidates.anchor_indices], candidates.objectness)
    for level, part in enumerate(trace.objectness.split(trace.anchor_counts)):
        on_level = candidates[candidates.levels == level]
        assert on_level.ranks.tolist() == list(range(min(LITE.rpn.pre_nms, len(part))))
        torch.testing.assert_close(on_level.objectness, part.sort(descending=True).values[: len(on_level)])
