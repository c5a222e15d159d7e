"""Traces: from an anchor to its detection, counts of each cut, heat maps, and what a trace costs."""

import copy
from dataclasses import fields, replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from model import boxes as box_ops
from model.anchors import anchor_locations, grid_anchors
from model.config import AnchorConfig
from model.detector import Detector
from model.presets import LITE, PAPER_VGG16, RESNET50_FPN
from model.structures import Detections, DetectOptions, Trace

CLASSES = ("__background__", "circle", "square", "star")
TRACED = DetectOptions(trace=True, proposals=1000)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random("LITE", classes=CLASSES, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def detections(detector: Detector) -> Detections:
    return detector.detect([_image(150, 190)], TRACED)[0]


@pytest.fixture(scope="module")
def trace(detections: Detections) -> Trace:
    assert detections.trace is not None
    return detections.trace


def _image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _same(a: Detections, b: Detections) -> None:
    for name in ("boxes", "scores", "class_ids", "proposal_indices"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize(
    ("config", "strides", "tolerance"),
    [
        (LITE.anchors, (8, 16, 32), 1e-3),
        (RESNET50_FPN.anchors, (4, 8, 16, 32, 64), 0.51),
        (PAPER_VGG16.anchors, (16,), 11),
    ],
)
def test_level_cell_size_and_ratio_make_the_anchor_again(
    config: AnchorConfig, strides: tuple[int, ...], tolerance: float
) -> None:
    # torchvision rounds corners; py-faster-rcnn rounds the sides of a cell and multiplies then, by up to 32.
    canvas = (128, 192)
    maps = tuple((canvas[0] // stride, canvas[1] // stride) for stride in strides)
    anchors = grid_anchors(config, canvas, maps, CPU)
    location = anchor_locations(config, maps, torch.arange(len(anchors)))
    stride = torch.tensor(strides)[location.levels]
    offset = 8 if config.legacy else 0
    widths, heights = location.sizes / location.ratios.sqrt(), location.sizes * location.ratios.sqrt()
    x, y = location.columns * stride + offset, location.rows * stride + offset
    rebuilt = torch.stack((x - widths / 2, y - heights / 2, x + widths / 2, y + heights / 2), dim=1)
    torch.testing.assert_close(rebuilt, anchors, atol=tolerance, rtol=0)


def test_places_of_some_anchors_in_any_order() -> None:
    location = anchor_locations(LITE.anchors, ((4, 4), (2, 2), (1, 1)), torch.tensor([125, 0, 96, 95, 7]))
    assert location.levels.tolist() == [2, 0, 1, 0, 0]
    assert location.rows.tolist() == [0, 0, 0, 3, 0]
    assert location.columns.tolist() == [0, 0, 0, 3, 1]
    assert location.sizes.tolist() == [288, 20, 64, 36, 36]
    assert location.ratios.tolist() == [2.0, 0.5, 0.5, 2.0, 0.5]
    assert anchor_locations(LITE.anchors, ((1, 1),) * 3, torch.zeros(0, dtype=torch.int64)).levels.shape == (0,)


def test_a_proposals_box_is_its_anchor_moved_by_its_deltas(detections: Detections) -> None:
    proposals = detections.proposals
    assert proposals is not None
    decoded = box_ops.clip(box_ops.decode(proposals.deltas, proposals.anchors), 150.0, 190.0)
    torch.testing.assert_close(decoded, proposals.boxes, atol=1e-2, rtol=0)


def test_a_detection_is_its_proposal_refined_and_the_proposal_stands_where_its_anchor_does(
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


def test_a_traced_image_changes_neither_its_mates_nor_its_own_answer(detector: Detector) -> None:
    images = [_image(150, 190, seed) for seed in range(3)]
    plain = DetectOptions(proposals=1000)
    without = detector.detect(images, plain)
    among = detector.detect(images, [plain, TRACED, plain])
    assert [answer.trace is not None for answer in among] == [False, True, False]
    assert among[1].batch_size == 3
    for before, after in zip(without, among, strict=True):
        _same(before, after)


def test_a_trace_costs_no_second_forward_pass(detector: Detector) -> None:
    model = detector.model
    with (
        patch.object(model.backbone, "forward", wraps=model.backbone.forward) as backbone,
        patch.object(model.rpn.head, "forward", wraps=model.rpn.head.forward) as head,
        patch.object(model.roi_heads, "forward", wraps=model.roi_heads.forward) as roi_head,
    ):
        detector.detect([_image(150, 190), _image(150, 190, 1)], [TRACED, DetectOptions()])
    assert (backbone.call_count, head.call_count, roi_head.call_count) == (1, 1, 1)


def test_who_asks_for_no_trace_pays_for_none(detector: Detector) -> None:
    with patch("model.explain.requested.build_trace") as build_trace:
        (answer,) = detector.detect([_image(150, 190)])
    build_trace.assert_not_called()
    assert answer.trace is None


def test_a_trace_also_keeps_what_the_limit_of_detections_cut(detector: Detector) -> None:
    image = _image(150, 190)
    (short,) = detector.detect([image], replace(TRACED, max_detections=3))
    (long,) = detector.detect([image], replace(TRACED, max_detections=10_000))
    assert len(short) == 3
    assert short.trace is not None
    assert short.trace.detected_pairs.tolist() == torch.stack((long.proposal_indices, long.class_ids), dim=1).tolist()


def test_a_trace_looks_at_all_classes(detector: Detector) -> None:
    with pytest.raises(ValueError, match="give no class_ids"):
        detector.detect([_image(50, 50)], DetectOptions(trace=True, class_ids=(1,)))


def test_an_image_without_proposals_has_a_trace_too(detector: Detector) -> None:
    with _config(detector, rpn=replace(LITE.rpn, score_threshold=1.0)):
        (answer,) = detector.detect([_image(50, 50)], TRACED)
    assert answer.trace is not None
    assert len(answer.trace.scores) == 0
    assert all(row.after_size == row.kept == 0 for row in answer.trace.stage_counts())


def _config(detector: Detector, **changes: object):  # type: ignore[no-untyped-def]
    """The same weights under other thresholds, while the context lasts."""
    config = replace(detector.config, **changes)  # type: ignore[arg-type]
    model = detector.model
    return patch.multiple(model, config=config, rpn=_with(model.rpn, config.rpn))


def _with(rpn, config):  # type: ignore[no-untyped-def]
    other = copy.copy(rpn)
    other.config = config
    return other
