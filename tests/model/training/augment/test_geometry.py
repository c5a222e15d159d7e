"""Resizing, cropping and flipping move boxes with the pixels."""

import numpy as np
import pytest
import torch

from model.training.augment import (
    AugmentConfig,
    crop_resize,
    flip_horizontally,
    resize_and_crop,
)
from tests.model.training.augment.images import painted_image, red_box


def test_resizing_moves_boxes_with_the_pixels():
    result = crop_resize(painted_image([[20, 10, 60, 50]]), (0, 0, 100, 200), (50, 300), 0.3, 2)
    assert result.pixels.shape == (3, 50, 300)
    assert result.boxes.tolist() == [[30, 5, 90, 25]]
    assert np.abs(np.array(red_box(result.pixels)) - result.boxes[0]).max() <= 1


def test_flipping_moves_boxes_with_the_pixels_and_twice_is_nothing():
    original = painted_image([[20, 10, 60, 50]])
    result = flip_horizontally(original)
    assert result.boxes.tolist() == [[140, 10, 180, 50]]
    assert red_box(result.pixels) == [140, 10, 180, 50]
    assert flip_horizontally(result).boxes.tolist() == original.boxes.tolist()
    assert torch.equal(flip_horizontally(result).pixels, original.pixels)


@pytest.mark.parametrize(
    ("box", "expected", "ignored"),
    [
        ([60, 30, 80, 50], [[10, 10, 30, 30]], [False]),  # inside
        ([40, 30, 70, 50], [[0, 10, 20, 30]], [False]),  # its centre is inside
        ([30, 30, 60, 50], [[0, 10, 10, 30]], [False]),  # its centre is outside, but a third is visible
        ([0, 30, 60, 50], [[0, 10, 10, 30]], [True]),  # only a sixth is visible: no object, no background
        ([0, 0, 200, 100], [[0, 0, 100, 60]], [False]),  # larger than the window, centre inside
        ([0, 0, 40, 100], [], []),  # outside
        ([60, 79, 80, 81], [[10, 59, 30, 60]], [True]),  # a centre on the border, a sliver of one pixel
        ([60, 79.7, 80, 81], [], []),  # less than half a pixel shows
    ],
)
def test_cropping_keeps_objects_ignores_slivers_and_drops_invisible_boxes(box, expected, ignored):
    window = (20, 50, 60, 100)  # top, left, height, width
    result = crop_resize(painted_image([box]), window, (60, 100), min_visible=0.3, min_side=2)
    np.testing.assert_allclose(result.boxes, np.array(expected, np.float32).reshape(-1, 4), atol=1e-4)
    assert result.ignore.tolist() == ignored
    assert len(result.class_ids) == len(expected)


def test_boxes_that_shrink_below_two_pixels_are_ignored():
    result = crop_resize(painted_image([[10, 10, 18, 60]]), (0, 0, 100, 200), (20, 40), min_visible=0.3, min_side=2)
    assert result.boxes.tolist() == pytest.approx(np.array([[2, 2, 3.6, 12]]))
    assert result.ignore.tolist() == [True]


def test_ignored_boxes_move_along_and_stay_ignored():
    both = painted_image([[20, 10, 60, 50], [100, 20, 150, 90]], ignore=[False, True])
    result = crop_resize(flip_horizontally(both), (0, 0, 100, 200), (50, 100), 0.3, 2)
    assert result.boxes.tolist() == [[70, 5, 90, 25], [25, 10, 50, 45]]
    assert result.ignore.tolist() == [False, True]
    assert result.class_ids.tolist() == [1, 2]


def test_covering_leaves_no_gap_however_small_the_scale():
    config = AugmentConfig(scale=(0.3, 0.5), stretch=1.5)
    for seed in range(20):
        result = resize_and_crop(painted_image([]), (70, 90), config, np.random.default_rng(seed), cover=True)
        assert result.pixels.shape == (3, 70, 90)
