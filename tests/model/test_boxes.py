"""Boxes: area, overlap, clipping, and the paper's offsets."""

import math

import pytest
import torch

from model import boxes


def test_a_box_of_one_pixel_is_one_wide_and_not_two() -> None:
    # py-faster-rcnn would count x2 - x1 + 1.
    assert boxes.area(torch.tensor([[3.0, 5.0, 4.0, 6.0]])).tolist() == [1.0]


def test_iou_of_every_pair() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [10.0, 10.0, 12.0, 12.0]])
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [20.0, 20.0, 21.0, 21.0]])
    torch.testing.assert_close(boxes.iou(a, b), torch.tensor([[1.0, 1 / 3, 0.0], [0.0, 0.0, 0.0]]))


def test_iou_of_a_box_without_area_is_zero_and_not_nan() -> None:
    nothing = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert boxes.iou(nothing, nothing).tolist() == [[0.0]]


def test_iou_with_no_boxes_has_no_entries() -> None:
    assert boxes.iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_clipping_keeps_boxes_within_the_bounds() -> None:
    box = torch.tensor([[-5.0, -1.0, 30.0, 7.0]])
    assert boxes.clip(box, 6, 20).tolist() == [[0.0, 0.0, 20.0, 6.0]]


def test_clipping_takes_bounds_for_each_image() -> None:
    both = torch.tensor([[[0.0, 0.0, 9.0, 9.0]], [[0.0, 0.0, 9.0, 9.0]]])
    clipped = boxes.clip(both, torch.tensor([[4.0], [6.0]]), torch.tensor([[5.0], [7.0]]))
    assert clipped.tolist() == [[[0.0, 0.0, 5.0, 4.0]], [[0.0, 0.0, 7.0, 6.0]]]


def test_offsets_are_those_of_equation_2() -> None:
    anchor = torch.tensor([[10.0, 10.0, 30.0, 50.0]])  # centre (20, 30), 20 x 40
    box = torch.tensor([[20.0, 20.0, 60.0, 40.0]])  # centre (40, 30), 40 x 20
    torch.testing.assert_close(boxes.encode(box, anchor), torch.tensor([[1.0, 0.0, math.log(2), -math.log(2)]]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decoding_turns_encoding_back(weights: tuple[float, float, float, float]) -> None:
    corners = torch.rand(50, 2, 2) * 100
    anchors = torch.cat((corners[:, 0], corners[:, 0] + corners[:, 1] + 1), dim=1)
    target = anchors.flip(0)
    decoded = boxes.decode(boxes.encode(target, anchors, weights), anchors, weights)
    torch.testing.assert_close(decoded, target, atol=1e-3, rtol=1e-4)


def test_growth_is_clamped_from_above_only() -> None:
    # exp(log(1000 / 16)) = 62.5 times the anchor at most, and as small as the offsets say.
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    decoded = boxes.decode(torch.tensor([[0.0, 0.0, 50.0, -9.0]]), anchor)[0]
    assert float(decoded[2] - decoded[0]) == pytest.approx(1000.0)
    assert float(decoded[3] - decoded[1]) == pytest.approx(16 * math.exp(-9), rel=1e-2)


def test_boxes_are_rescaled_by_separate_ratios_of_height_and_width() -> None:
    # Resized sides are floored, which makes the two ratios differ.
    rescaled = boxes.rescale(
        torch.tensor([[10.0, 10.0, 20.0, 20.0]]), torch.tensor([100, 200]), torch.tensor([150, 100])
    )
    assert rescaled.tolist() == [[5.0, 15.0, 10.0, 30.0]]
