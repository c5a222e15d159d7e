"""The region proposal network: its head, its candidates, its proposals."""

from dataclasses import replace

import torch
from torchvision.ops import remove_small_boxes

from model import boxes as box_ops
from model.config import AnchorConfig, RPNConfig
from model.presets import LITE, PAPER_VGG16, RESNET50_FPN
from model.rpn import RPN, RPNHead

# One level of 2 x 2 cells of 16 px, one square anchor of 16 px a cell.
ANCHORS = AnchorConfig(sizes=((16.0,),), ratios=(1.0,), rounded=False, strides=(16,))
CPU = torch.device("cpu")


def _rpn(config: RPNConfig, anchors: AnchorConfig = ANCHORS) -> RPN:
    return RPN(4, anchors, config).eval()


def _propose(rpn: RPN, logits: torch.Tensor, deltas: torch.Tensor, size: tuple[int, int] = (32, 32)):  # type: ignore[no-untyped-def]
    grid, counts = rpn.grid_anchors((32, 32), ((2, 2),), CPU)
    candidates = rpn.select_candidates(logits, deltas, grid, counts, torch.tensor([size] * len(logits)))
    return candidates, rpn.select_proposals(candidates)


def test_logits_and_offsets_line_up_with_the_anchors() -> None:
    # Channel a * 4 + c of the 1x1 convolution is offset c of anchor a at that cell.
    head = RPNHead(4, 6, LITE.rpn)
    maps = [torch.randn(2, 4, 3, 5), torch.randn(2, 4, 2, 3)]
    logits, deltas = head(maps)
    assert logits.shape == (2, (15 + 6) * 6)
    assert deltas.shape == (2, (15 + 6) * 6, 4)
    hidden = head.conv(maps[1])
    row, column, anchor = 1, 2, 4
    index = 15 * 6 + (row * 3 + column) * 6 + anchor
    torch.testing.assert_close(logits[1, index], head.cls_logits(hidden)[1, anchor, row, column])
    torch.testing.assert_close(deltas[1, index], head.bbox_pred(hidden)[1, anchor * 4 : anchor * 4 + 4, row, column])


def test_the_papers_softmax_over_background_and_object_is_a_sigmoid_of_their_difference() -> None:
    # Channels are [9 background | 9 object], not pairs.
    head = RPNHead(4, 9, PAPER_VGG16.rpn)
    level = torch.randn(1, 4, 2, 2)
    logits, _ = head([level])
    scores = head.cls_logits(head.conv(level)).view(2, 9, 2, 2)
    expected = scores.softmax(dim=0)[1].permute(1, 2, 0).flatten()
    torch.testing.assert_close(logits.sigmoid()[0], expected)


def test_top_k_comes_before_decoding_and_its_ranks_are_by_objectness() -> None:
    rpn = _rpn(RPNConfig(pre_nms=2))
    candidates, _ = _propose(rpn, torch.tensor([[0.1, 3.0, -1.0, 2.0]]), torch.zeros(1, 4, 4))
    assert candidates.anchor_indices.tolist() == [[1, 3]]
    assert candidates.ranks.tolist() == [0, 1]
    assert candidates.boxes.shape == (1, 2, 4)


def test_top_k_is_taken_from_each_level() -> None:
    # However high the other level scores.
    anchors = AnchorConfig(sizes=((16.0,), (32.0,)), ratios=(1.0,), rounded=False, strides=(16, 32))
    rpn = RPN(4, anchors, RPNConfig(pre_nms=1)).eval()
    grid, counts = rpn.grid_anchors((32, 32), ((2, 2), (1, 1)), CPU)
    logits = torch.tensor([[9.0, 8.0, 7.0, 6.0, -5.0]])
    candidates = rpn.select_candidates(logits, torch.zeros(1, 5, 4), grid, counts, torch.tensor([[32, 32]]))
    assert candidates.levels.tolist() == [0, 1]
    assert candidates.anchor_indices.tolist() == [[0, 4]]


def test_equal_scores_go_by_index() -> None:
    rpn = _rpn(RPNConfig(pre_nms=4))
    candidates, _ = _propose(rpn, torch.zeros(1, 4), torch.zeros(1, 4, 4))
    assert candidates.anchor_indices.tolist() == [[0, 1, 2, 3]]


def test_proposals_are_clipped_to_their_own_image_and_not_to_the_canvas() -> None:
    rpn = _rpn(RPNConfig())
    _, (proposals,) = _propose(rpn, torch.zeros(1, 4), torch.zeros(1, 4, 4), size=(20, 12))
    assert proposals.boxes[:, 2].max() <= 12
    assert proposals.boxes[:, 3].max() <= 20


def test_boxes_too_small_or_too_unlikely_are_dropped_before_nms() -> None:
    # Kept at the score threshold, dropped below it.
    rpn = _rpn(RPNConfig(score_threshold=0.5, min_size=9.0))
    candidates, (proposals,) = _propose(rpn, torch.tensor([[0.0, -0.1, 1.0, 2.0]]), torch.zeros(1, 4, 4))
    # Anchor 0 is clipped to 8 px, anchor 1 is unlikely, 2 is 8 px wide; 3 is whole.
    assert candidates.anchor_indices[0, candidates.valid[0]].tolist() == [3]
    assert proposals.anchor_indices.tolist() == [3]


def test_the_smallest_side_can_be_meant_in_pixels_of_the_original() -> None:
    # py-faster-rcnn: 16 px times the scale.
    rpn = _rpn(replace(PAPER_VGG16.rpn, channels=None, min_size=16.0))
    grid, counts = rpn.grid_anchors((32, 32), ((2, 2),), CPU)
    logits, deltas, sizes = torch.zeros(2, 4), torch.zeros(2, 4, 4), torch.tensor([[32, 32]] * 2)
    candidates = rpn.select_candidates(logits, deltas, grid, counts, sizes, torch.tensor([0.5, 1.5]))
    assert candidates.valid.sum(dim=1).tolist() == [4, 0]


def test_nms_is_within_a_level_and_the_cut_over_all_of_them() -> None:
    anchors = AnchorConfig(sizes=((32.0,), (32.0,)), ratios=(1.0,), rounded=False, strides=(32, 32))
    rpn = RPN(4, anchors, RPNConfig(post_nms=1)).eval()
    grid, counts = rpn.grid_anchors((32, 32), ((1, 1), (1, 1)), CPU)
    candidates = rpn.select_candidates(
        torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2, 4), grid, counts, torch.tensor([[32, 32]])
    )
    (proposals,) = rpn.select_proposals(candidates)
    assert proposals.levels.tolist() == [1]
    rpn.config = replace(rpn.config, post_nms=10)
    assert rpn.select_proposals(candidates)[0].levels.tolist() == [1, 0]


def test_a_proposal_can_be_recomputed_from_its_anchor_and_offsets() -> None:
    rpn = _rpn(RPNConfig())
    _, per_image = _propose(rpn, torch.randn(2, 4), torch.randn(2, 4, 4) * 0.3)
    for proposals in per_image:
        boxes = box_ops.clip(box_ops.decode(proposals.deltas, proposals.anchors), 32, 32)
        torch.testing.assert_close(proposals.boxes, boxes)
        assert proposals.objectness.tolist() == sorted(proposals.objectness.tolist(), reverse=True)


def test_logits_and_offsets_in_bfloat16_are_decoded_in_float32() -> None:
    # In bfloat16 a corner near 1300 would be rounded by up to 4 pixels.
    canvas, maps = (800, 1344), ((200, 336), (100, 168), (50, 84), (25, 42), (13, 21))
    rpn = RPN(4, RESNET50_FPN.anchors, RESNET50_FPN.rpn).eval()
    grid, counts = rpn.grid_anchors(canvas, maps, CPU)
    logits, deltas = torch.randn(1, len(grid)).bfloat16(), torch.zeros(1, len(grid), 4).bfloat16()
    candidates = rpn.select_candidates(logits, deltas, grid, counts, torch.tensor([canvas]))
    assert candidates.boxes.dtype == candidates.logits.dtype == torch.float32
    expected = box_ops.clip(grid[candidates.anchor_indices], *canvas)
    torch.testing.assert_close(candidates.boxes, expected, rtol=0, atol=1e-3)
    assert rpn.select_proposals(candidates)[0].objectness.dtype == torch.float32


def test_an_image_in_which_nothing_is_likely_has_no_proposals() -> None:
    rpn = _rpn(RPNConfig(score_threshold=0.9))
    _, (proposals,) = _propose(rpn, torch.full((1, 4), -9.0), torch.zeros(1, 4, 4))
    assert len(proposals) == 0
    assert proposals.boxes.shape == (0, 4)


def _candidates(config: RPNConfig, scores: list[list[float]], boxes: list[list[list[float]]]):  # type: ignore[no-untyped-def]
    """Return an RPN of as many levels as there are lists, and its candidates: anchors ``boxes``, offsets zero."""
    anchors = AnchorConfig(sizes=((16.0,),) * len(scores), ratios=(1.0,))
    rpn = RPN(4, anchors, config).eval()
    grid = torch.tensor([box for level in boxes for box in level])
    logits = torch.tensor([[score for level in scores for score in level]])
    counts = [len(level) for level in scores]
    deltas = torch.zeros(1, len(grid), 4)
    return rpn, rpn.select_candidates(logits, deltas, grid, counts, torch.tensor([[100, 100]]))


def test_top_k_and_nms_are_per_level_and_the_last_limit_is_over_all() -> None:
    box, far = [0.0, 0.0, 50.0, 50.0], [50.0, 50.0, 99.0, 99.0]
    # Level 0 has the three best: the third falls to top-k, the second to NMS. Level 1's best is the same box and stays.
    config = RPNConfig(pre_nms=2, post_nms=2)
    rpn, candidates = _candidates(config, [[3.0, 2.9, 2.8], [1.0, 0.5]], [[box, box, far], [box, far]])
    assert candidates.anchor_indices.tolist() == [[0, 1, 3, 4]]
    (proposals,) = rpn.select_proposals(candidates)
    assert proposals.anchor_indices.tolist() == [0, 3]
    assert proposals.levels.tolist() == [0, 1]


def test_an_objectness_and_a_side_at_their_limits_are_kept() -> None:
    smallest = [0.0, 0.0, 1e-3, 1e-3]
    _, candidates = _candidates(RPNConfig(score_threshold=0.5), [[0.0, -1e-6]], [[[0.0, 0.0, 9.0, 9.0]] * 2])
    assert candidates.valid.tolist() == [[True, False]]
    _, candidates = _candidates(RPNConfig(), [[0.0, 0.0]], [[smallest, [0.0, 0.0, 0.9e-3, 9.0]]])
    assert candidates.valid.tolist() == [[True, False]]
    assert remove_small_boxes(torch.tensor([smallest]), 1e-3).tolist() == [0]


def test_of_equal_boxes_with_equal_scores_nms_keeps_the_first() -> None:
    rpn, candidates = _candidates(RPNConfig(pre_nms=50), [[1.0] * 50], [[[0.0, 0.0, 50.0, 50.0]] * 50])
    assert candidates.anchor_indices.tolist() == [list(range(50))]
    assert rpn.select_proposals(candidates)[0].anchor_indices.tolist() == [0]
