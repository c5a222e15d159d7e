"""Every stage at which an expected box can be lost, through the whole detector; the heads' outputs are set by hand."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import ResolvedCheckpoint
from model.config import DetectorConfig
from model.detector import STAGES, Detector, Explanation, explain
from model.faster_rcnn import FasterRCNN, RPNOutput
from model.presets import LITE
from model.structures import DetectOptions, Trace

CLASSES = ("__background__", "cat", "dog", "bird")
# A canvas of 64 x 64: maps of 8, 4 and 2 cells a side, 6 anchors a cell.
SIDE, MAPS = 64, (8, 4, 2)
ANCHORS = sum(cells * cells * 6 for cells in MAPS)
# The square anchor of 20 px in the cell at row 4, column 4 of level 0, centred on (32, 32).
TARGET = (4 * 8 + 4) * 6 + 2
EXACT = (22.0, 22.0, 42.0, 42.0)
LEFT = (22.0, 22.0, 34.0, 42.0)  # IoU 0.6 with EXACT
# The square anchor of 20 px at row 1, column 1: far from all of those.
FAR = (1 * 8 + 1) * 6 + 2
AWAY = (10.0, 0.0, 0.0, 0.0)  # offsets that push a box out of the image, where clipping leaves nothing of it
STAY = (0.0, 0.0, 0.0, 0.0)
CAT = (0.05, 0.9, 0.03, 0.02)


def _detector(config: DetectorConfig) -> Detector:
    """Make a detector of three classes with random weights."""
    checkpoint = ResolvedCheckpoint(name="scene", path=Path("nowhere"), preset=config.name, classes=CLASSES)
    model = FasterRCNN(config.with_classes(len(CLASSES)))
    return Detector(model, checkpoint, device="cpu", precision="fp32")


class Scene:
    """A LITE detector whose heads' outputs the test sets.

    anchors: (objectness logit, offsets) by anchor; all others are unlikely and pushed away. classify: (probabilities of
    the classes, offsets of every class) by the left edge of a proposal, to the pixel; other proposals are background.
    """

    def __init__(
        self,
        anchors: Mapping[int, tuple[float, Sequence[float]]],
        classify: Mapping[int, tuple[Sequence[float], Sequence[float]]],
        **rpn: float,
    ) -> None:
        transform = replace(LITE.transform, min_size=SIDE, max_size=SIDE)
        self.detector = _detector(replace(LITE, transform=transform, rpn=replace(LITE.rpn, **rpn)))  # type: ignore[arg-type]
        model = self.detector.model
        self.anchors, self.classify = anchors, classify
        self.passes = 0
        model.run_convolutions = self._run_convolutions  # type: ignore[method-assign]
        model.roi_heads.forward = self._heads  # type: ignore[method-assign]

    def trace(self, **options: object) -> Trace:
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        (detections,) = self.detector.detect([image], DetectOptions(trace=True, **options))  # type: ignore[arg-type]
        assert detections.trace is not None
        return detections.trace

    def explain(
        self, box: Sequence[float], label: str | None = "cat", *, iou: float = 0.5, **options: object
    ) -> Explanation:
        trace = self.trace(**options)
        (explanation,) = explain(trace, torch.tensor([box]), [label], iou=iou)
        assert self.passes == 1
        assert re.fullmatch(r"[A-Z][^.].*[^.]\.", explanation.sentence), explanation.sentence
        return explanation

    def _run_convolutions(self, pixels: Tensor) -> RPNOutput:
        self.passes += 1
        logits = torch.full((1, ANCHORS), -9.0)
        deltas = torch.tensor(AWAY).repeat(1, ANCHORS, 1)
        for anchor, (logit, offsets) in self.anchors.items():
            logits[0, anchor], deltas[0, anchor] = logit, torch.tensor(offsets)
        return RPNOutput([torch.zeros(1, 128, cells, cells) for cells in MAPS], logits, deltas)

    def _heads(self, maps: object, regions: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.tensor([1.0, 1e-6, 1e-6, 1e-6]).log().repeat(len(regions), 1)
        offsets = torch.zeros(len(regions), len(CLASSES), 4)
        for row, edge in enumerate(regions[:, 1].round().int().tolist()):
            if edge in self.classify:
                probabilities, offset = self.classify[edge]
                logits[row], offsets[row] = torch.tensor(probabilities).log(), torch.tensor(offset)
        return logits, offsets * torch.tensor(LITE.roi_head.box_weights)


def _shift(pixels: float) -> tuple[float, float, float, float]:
    """Return the offsets that move a box of 20 px to the right."""
    return (pixels / 20, 0.0, 0.0, 0.0)


def test_found() -> None:
    outcome = Scene({TARGET: (3.0, STAY), FAR: (4.0, STAY)}, {22: (CAT, STAY)}).explain(EXACT)
    assert outcome.stage == "found"
    assert outcome.detection is not None
    assert (outcome.detection.index, outcome.detection.proposal, outcome.detection.label) == (0, 1, "cat")
    assert outcome.detection.score == pytest.approx(0.9)
    assert outcome.detection.class_scores == pytest.approx(CAT)
    assert outcome.detection.iou == outcome.proposal.iou == outcome.anchor.iou == pytest.approx(1.0)
    assert outcome.proposal.index == 1
    assert outcome.anchor == outcome.proposal.anchor
    assert (outcome.anchor.index, outcome.anchor.level, outcome.anchor.row, outcome.anchor.column) == (
        TARGET,
        0,
        4,
        4,
    )
    assert (
        outcome.anchor.size,
        outcome.anchor.ratio,
        outcome.anchor.rank,
        outcome.anchor.level_anchors,
    ) == (20.0, 1.0, 1, 384)
    assert 'detection 0, "cat" with score 0.900' in outcome.sentence


def test_found_for_any_class_but_not_for_another() -> None:
    scene = {TARGET: (3.0, STAY)}, {22: (CAT, STAY)}
    assert Scene(*scene).explain(EXACT, None).stage == "found"
    assert Scene(*scene).explain(EXACT, "dog").stage == "classified_other"


def test_no_anchor_fits() -> None:
    outcome = Scene({TARGET: (3.0, STAY)}, {}).explain((30.0, 30.0, 34.0, 34.0))
    assert outcome.stage == "no_anchor"
    assert outcome.anchor.iou == pytest.approx(16 / 400)
    assert outcome.detection is None
    assert outcome.sentence.startswith("No anchor fits: the best (size 20, ratio 1, level 0) overlaps by IoU 0.04")


def test_no_anchor_is_left_where_the_rpn_moves_it_away() -> None:
    outcome = Scene({TARGET: (3.0, _shift(12))}, {}).explain(EXACT)
    assert outcome.stage == "no_anchor"
    assert outcome.anchor.iou == pytest.approx(1.0)
    assert outcome.proposal.iou == pytest.approx(8 / 32)  # the closest that came
    assert outcome.proposal.index == 0
    assert outcome.sentence.startswith("The RPN moved the anchors away: the best overlaps by IoU 1.00")


def test_low_objectness() -> None:
    outcome = Scene({TARGET: (-4.0, STAY), FAR: (4.0, STAY)}, {}, score_threshold=0.05).explain(EXACT)
    assert outcome.stage == "low_objectness"
    assert outcome.proposal.index is None
    assert outcome.proposal.anchor.objectness == pytest.approx(0.018, abs=1e-3)
    assert "objectness 0.018) is below the RPN's threshold of 0.05" in outcome.sentence


def test_low_objectness_comes_before_top_k() -> None:
    outcome = Scene({TARGET: (-4.0, STAY), FAR: (4.0, STAY)}, {}, score_threshold=0.05, pre_nms=1).explain(EXACT)
    assert outcome.stage == "low_objectness"


def test_top_k() -> None:
    outcome = Scene({TARGET: (3.0, STAY), FAR: (4.0, STAY)}, {}, pre_nms=1).explain(EXACT)
    assert outcome.stage == "top_k"
    assert outcome.proposal.anchor.rank == 1
    assert "rank 2 on its level; only the best 1 go on" in outcome.sentence


def test_the_rank_of_an_anchor_below_top_k_counts_ties_by_index() -> None:
    anchors = {TARGET: (3.0, STAY), FAR: (3.0, STAY), FAR + 60: (3.0, AWAY), TARGET + 60: (3.0, AWAY)}
    outcome = Scene(anchors, {}, pre_nms=1).explain(EXACT)
    assert outcome.proposal.anchor.rank == 2


def test_too_small() -> None:
    outcome = Scene({TARGET: (3.0, STAY)}, {}, min_size=30.0).explain(EXACT)
    assert outcome.stage == "too_small"
    assert "smallest, 30 pixels" in outcome.sentence


def test_rpn_nms_names_the_proposal() -> None:
    # 3 px to the right of EXACT (IoU 17/23 > 0.7), and too far from LEFT (9/23).
    rival = TARGET + 6
    anchors = {FAR: (5.0, STAY), rival: (4.0, _shift(3 - 8)), TARGET: (3.0, STAY)}
    outcome = Scene(anchors, {}).explain(LEFT)
    assert outcome.stage == "rpn_nms"
    assert outcome.proposal.index is None
    assert outcome.proposal.anchor.index == TARGET
    assert outcome.proposal.suppressed_by is not None
    assert outcome.proposal.suppressed_by.index == 1
    assert outcome.proposal.suppressed_by.iou == pytest.approx(17 / 23)
    assert outcome.proposal.suppressed_by.score == pytest.approx(torch.tensor(4.0).sigmoid().item())
    assert outcome.proposal.suppressed_by.box == pytest.approx((25.0, 22.0, 45.0, 42.0))
    assert (
        "dropped by NMS for proposal 1: objectness 0.982, overlapping it by IoU 0.74, more than 0.7" in outcome.sentence
    )


def test_rpn_nms_for_a_proposal_that_the_limit_cut_later() -> None:
    anchors = {FAR: (5.0, STAY), TARGET + 6: (4.0, _shift(3 - 8)), TARGET: (3.0, STAY)}
    outcome = Scene(anchors, {}, post_nms=1).explain(LEFT)
    assert outcome.stage == "rpn_nms"
    assert outcome.proposal.suppressed_by is not None
    assert outcome.proposal.suppressed_by.index is None
    assert "a proposal that a limit cut later" in outcome.sentence


def test_proposal_limit() -> None:
    outcome = Scene({TARGET: (3.0, STAY), FAR: (4.0, STAY)}, {}, post_nms=1).explain(EXACT)
    assert outcome.stage == "proposal_limit"
    assert outcome.proposal.index is None
    assert "only the best 1 proposals" in outcome.sentence


def test_classified_background() -> None:
    outcome = Scene({TARGET: (3.0, STAY)}, {22: ((0.9, 0.04, 0.03, 0.03), STAY)}).explain(EXACT, score_threshold=0.05)
    assert outcome.stage == "classified_background"
    assert outcome.detection is not None
    assert (outcome.detection.index, outcome.detection.proposal, outcome.detection.label) == (
        None,
        0,
        "cat",
    )
    assert "taken for background (0.900)" in outcome.sentence
    assert '"cat" scores 0.040, not above the threshold of 0.05' in outcome.sentence


def test_classified_other() -> None:
    outcome = Scene({TARGET: (3.0, STAY)}, {22: ((0.05, 0.04, 0.88, 0.03), STAY)}).explain(EXACT, score_threshold=0.05)
    assert outcome.stage == "classified_other"
    assert outcome.detection is not None
    assert outcome.detection.top_label == "dog"
    assert 'taken for "dog" (0.880)' in outcome.sentence


def test_score_threshold() -> None:
    outcome = Scene({TARGET: (3.0, STAY)}, {22: ((0.2, 0.45, 0.3, 0.05), STAY)}).explain(EXACT, score_threshold=0.5)
    assert outcome.stage == "score_threshold"
    assert "not above the threshold of 0.5" in outcome.sentence


def test_of_several_near_proposals_the_best_score_decides() -> None:
    scores = {22: ((0.7, 0.1, 0.1, 0.1), STAY), 27: ((0.2, 0.45, 0.3, 0.05), STAY)}
    anchors = {TARGET: (4.0, STAY), TARGET + 6: (3.0, _shift(5 - 8))}
    assert Scene(anchors, scores).explain(EXACT, score_threshold=0.5).stage == "score_threshold"


def test_misplaced() -> None:
    outcome = Scene({TARGET: (3.0, STAY)}, {22: (CAT, _shift(12))}).explain(EXACT)
    assert outcome.stage == "misplaced"
    assert outcome.detection is not None
    assert outcome.detection.iou == pytest.approx(8 / 32)
    assert outcome.detection.index == 0  # it is in the answer, but elsewhere
    assert "its refined box overlaps by IoU 0.25, not 0.50" in outcome.sentence


def test_a_neighbours_good_score_does_not_hide_the_box_that_lies_there() -> None:
    # The neighbour's proposal overlaps enough to be near, its refined box is elsewhere; the target's own scores low.
    scores = {22: ((0.5, 0.4, 0.05, 0.05), STAY), 27: (CAT, _shift(12))}
    anchors = {TARGET: (4.0, STAY), TARGET + 6: (3.0, _shift(5 - 8))}
    outcome = Scene(anchors, scores).explain(EXACT, score_threshold=0.45)
    assert outcome.stage == "classified_background"
    assert outcome.detection is not None
    assert outcome.detection.proposal == 0


def test_class_nms_names_the_detection() -> None:
    # 5 px to the right of EXACT: below the RPN's 0.7 with it (15/25), above the classes' 0.5; and off LEFT (7/25).
    scores = {22: ((0.3, 0.6, 0.05, 0.05), STAY), 27: (CAT, STAY)}
    anchors = {TARGET: (4.0, STAY), TARGET + 6: (3.0, _shift(5 - 8))}
    outcome = Scene(anchors, scores).explain(LEFT)
    assert outcome.stage == "class_nms"
    assert outcome.detection is not None
    assert outcome.detection.index is None
    assert outcome.detection.suppressed_by is not None
    assert outcome.detection.suppressed_by.index == 0
    assert outcome.detection.suppressed_by.score == pytest.approx(0.9)
    assert outcome.detection.suppressed_by.iou == pytest.approx(0.6)
    assert "dropped by NMS for detection 0: score 0.900, overlapping it by IoU 0.60, more than 0.5" in outcome.sentence


def test_a_detection_of_another_class_drops_none() -> None:
    scores = {22: ((0.3, 0.6, 0.05, 0.05), STAY), 27: ((0.05, 0.03, 0.9, 0.02), STAY)}
    anchors = {TARGET: (4.0, STAY), TARGET + 6: (3.0, _shift(5 - 8))}
    assert Scene(anchors, scores).explain(LEFT).stage == "found"


def test_detection_limit() -> None:
    scores = {22: ((0.3, 0.6, 0.05, 0.05), STAY), 0: (CAT, STAY)}
    anchors = {TARGET: (4.0, STAY), FAR: (3.0, STAY)}
    outcome = Scene(anchors, scores).explain(EXACT, max_detections=1)
    assert outcome.stage == "detection_limit"
    assert outcome.detection is not None
    assert outcome.detection.index is None
    assert "only the best 1 detections" in outcome.sentence


def test_the_iou_determines_which_boxes_match() -> None:
    scene = {TARGET: (3.0, STAY)}, {22: (CAT, STAY)}
    assert Scene(*scene).explain(LEFT, iou=0.6).stage == "found"
    assert Scene(*scene).explain(LEFT, iou=0.61).stage == "no_anchor"


def test_every_stage_is_tested_here() -> None:
    tested = set(re.findall(r'stage == "(\w+)"', Path(__file__).read_text()))
    assert tested == set(STAGES)


@pytest.mark.parametrize(
    ("boxes", "labels", "iou", "message"),
    [
        ([EXACT], ["cat", "dog"], 0.5, "2 labels for 1 boxes"),
        ([EXACT], ["horse"], 0.5, "no class 'horse'"),
        ([EXACT], ["__background__"], 0.5, "no class '__background__'"),
        ([(5.0, 5.0, 5.0, 9.0)], None, 0.5, "x1 < x2"),
        ([(5.0, 5.0, float("nan"), 9.0)], None, 0.5, "finite"),
        ([EXACT], None, 0.0, "iou must be above 0"),
    ],
)
def test_boxes_labels_and_iou_out_of_range_are_refused(
    boxes: object, labels: list[str], iou: float, message: str
) -> None:
    trace = Scene({}, {}).trace()
    with pytest.raises(ValueError, match=message):
        explain(trace, torch.tensor(boxes), labels, iou=iou)


def test_no_boxes_give_no_explanations() -> None:
    assert explain(Scene({}, {}).trace(), torch.zeros(0, 4)) == []


@pytest.mark.parametrize("rpn_threshold", [0.0, 0.5])
@pytest.mark.parametrize("threshold", [0.05, 0.2505])
def test_every_box_is_explained_for_random_weights(rpn_threshold: float, threshold: float) -> None:
    # Random boxes: always one of the stages, and facts that agree with the detections.
    detector = _detector(replace(LITE, rpn=replace(LITE.rpn, score_threshold=rpn_threshold)))
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (180, 240, 3), dtype=np.uint8)
    options = DetectOptions(trace=True, score_threshold=threshold, max_detections=30)
    (detections,) = detector.detect([image], options)
    assert detections.trace is not None
    corners = torch.from_numpy(rng.uniform(0, 150, (60, 2))).float()
    boxes = torch.cat((corners, corners + torch.from_numpy(rng.uniform(5, 90, (60, 2))).float()), dim=1)
    boxes = torch.cat((boxes, detections.boxes))
    labels: list[str | None] = [None, "dog"] * 30 + list(detections.labels)
    explanations = explain(detections.trace, boxes, labels)
    assert len({explanation.stage for explanation in explanations}) >= 4
    for explanation in explanations[60:]:
        assert explanation.stage == "found"
    for explanation in explanations:
        if explanation.stage == "found":
            assert explanation.detection is not None
            assert explanation.detection.index is not None
            assert explanation.detection.box == tuple(detections.boxes[explanation.detection.index].tolist())
        assert (explanation.proposal.suppressed_by is not None) == (explanation.stage == "rpn_nms")
