"""Anchors: base anchors of both conventions, and the grid."""

from dataclasses import replace

import pytest
import torch

from model.anchors import base_anchors, grid_anchors, legacy_base_anchors, level_strides
from model.config import LITE, RESNET50_FPN, AnchorConfig

CPU = torch.device("cpu")


def test_anchors_of_a_cell_are_ratio_major() -> None:
    # Both sizes of the flat ratio come first.
    anchors = base_anchors((16.0, 32.0), (0.25, 1.0), rounded=False)
    assert anchors.tolist() == [[-16, -4, 16, 4], [-32, -8, 32, 8], [-8, -8, 8, 8], [-16, -16, 16, 16]]


def test_torchvisions_base_anchors_are_whole_pixels() -> None:
    # torchvision rounds them (anchor_utils.py), and its checkpoints were trained so.
    anchors = base_anchors((32.0,), (0.5, 1.0, 2.0), rounded=True)
    assert anchors.tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]


def test_the_papers_nine_anchors_are_those_of_its_code() -> None:
    # The table in py-faster-rcnn's generate_anchors.py, which counts pixels from 1 and includes the last.
    table = [
        [-83, -39, 100, 56],
        [-175, -87, 192, 104],
        [-359, -183, 376, 200],
        [-55, -55, 72, 72],
        [-119, -119, 136, 136],
        [-247, -247, 264, 264],
        [-35, -79, 52, 96],
        [-79, -167, 96, 184],
        [-167, -343, 184, 360],
    ]
    corners = [[x1 - 1, y1 - 1, x2, y2] for x1, y1, x2, y2 in table]
    assert legacy_base_anchors((128.0, 256.0, 512.0), (0.5, 1.0, 2.0), 16).tolist() == corners


def test_the_grid_goes_by_level_row_column_and_anchor() -> None:
    config = AnchorConfig(sizes=((2.0,), (4.0,)), ratios=(1.0,), rounded=False, strides=(8, 16))
    anchors = grid_anchors(config, (16, 16), ((2, 2), (1, 1)), CPU)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.tolist() == [[0, 0], [8, 0], [0, 8], [8, 8], [0, 0]]
    assert (anchors[:, 2] - anchors[:, 0]).tolist() == [2, 2, 2, 2, 4]


def test_torchvisions_stride_is_the_canvas_over_the_map() -> None:
    # P6 at a height of 800 has 13 rows, and 800 // 13 is 61.
    maps = ((200, 272), (100, 136), (50, 68), (25, 34), (13, 17))
    assert level_strides(RESNET50_FPN.anchors, (800, 1088), maps)[-1] == (61, 64)


def test_lites_strides_are_fixed() -> None:
    maps = ((48, 48), (24, 24), (12, 12))
    assert level_strides(LITE.anchors, (384, 384), maps) == ((8, 8), (16, 16), (32, 32))


def test_a_level_without_anchor_sizes_is_an_error_that_says_so() -> None:
    config = replace(LITE.anchors, sizes=LITE.anchors.sizes[:2])
    with pytest.raises(ValueError, match="2 levels of anchor sizes for 3 feature maps"):
        grid_anchors(config, (32, 32), ((4, 4), (2, 2), (1, 1)), CPU)
