"""Anchors: base anchors of both conventions, the grid against torchvision's, and the cell of each anchor."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from model.anchors import anchor_locations, base_anchors, grid_anchors, level_base_anchors, level_strides
from model.config import AnchorConfig
from model.presets import LITE, MOBILENET_V3_FPN, PAPER_VGG16, RESNET50_FPN

CPU = torch.device("cpu")
# An 800 x 1344 canvas, and its maps under ResNet-50's pyramid and in MobileNetV3.
CANVAS = (800, 1344)
RESNET_MAPS = ((200, 336), (100, 168), (50, 84), (25, 42), (13, 21))
MOBILENET_MAPS = ((25, 42), (25, 42), (13, 21))


def test_anchors_of_a_cell_are_ratio_major() -> None:
    # Both sizes of the flat ratio come first.
    anchors = base_anchors((16.0, 32.0), (0.25, 1.0), rounded=False)
    assert anchors.tolist() == [[-16, -4, 16, 4], [-32, -8, 32, 8], [-8, -8, 8, 8], [-16, -16, 16, 16]]


def test_torchvisions_base_anchors_are_whole_pixels() -> None:
    # torchvision rounds them (anchor_utils.py), and its checkpoints were trained so.
    anchors = base_anchors((32.0,), (0.5, 1.0, 2.0), rounded=True)
    assert anchors.tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]


def test_base_anchors_of_lite_are_not_rounded() -> None:
    assert not LITE.anchors.rounded
    anchors = base_anchors((32.0,), (0.5,), rounded=False)
    torch.testing.assert_close(anchors, torch.tensor([[-22.6274, -11.3137, 22.6274, 11.3137]]))


def test_the_papers_nine_anchors_are_those_of_its_code() -> None:
    # The table in the header of py-faster-rcnn's generate_anchors.py, which counts pixels from 1 and includes the last.
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
    assert level_base_anchors(PAPER_VGG16.anchors, 0).tolist() == corners


def test_legacy_anchors_without_strides_are_refused() -> None:
    with pytest.raises(ValueError, match="Legacy anchors need fixed strides"):
        level_base_anchors(replace(PAPER_VGG16.anchors, strides=None), 0)


def test_the_grid_goes_by_level_row_column_and_anchor() -> None:
    config = AnchorConfig(sizes=((2.0,), (4.0,)), ratios=(1.0,), rounded=False, strides=(8, 16))
    anchors = grid_anchors(config, (16, 16), ((2, 2), (1, 1)), CPU)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres.tolist() == [[0, 0], [8, 0], [0, 8], [8, 8], [0, 0]]
    assert (anchors[:, 2] - anchors[:, 0]).tolist() == [2, 2, 2, 2, 4]


@pytest.mark.parametrize(
    ("config", "maps"),
    [(RESNET50_FPN.anchors, RESNET_MAPS), (MOBILENET_V3_FPN.anchors, MOBILENET_MAPS)],
    ids=["RESNET50_FPN", "MOBILENET_V3_FPN"],
)
def test_the_grid_equals_that_of_torchvisions_anchor_generator(
    config: AnchorConfig, maps: tuple[tuple[int, int], ...]
) -> None:
    reference = AnchorGenerator(config.sizes, (config.ratios,) * len(config.sizes))
    images = ImageList(torch.zeros(1, 3, *CANVAS), [CANVAS])
    (expected,) = reference(images, [torch.zeros(1, 1, *shape) for shape in maps])
    assert torch.equal(grid_anchors(config, CANVAS, maps, CPU), expected)


def test_anchors_are_float32_whose_corners_bfloat16_would_move() -> None:
    anchors = grid_anchors(RESNET50_FPN.anchors, CANVAS, RESNET_MAPS, CPU)
    assert anchors.dtype == torch.float32
    assert float((anchors.bfloat16().float() - anchors).abs().max()) > 2


def test_torchvisions_stride_is_the_canvas_over_the_map() -> None:
    # P6 at a height of 800 has 13 rows, and 800 // 13 is 61.
    strides = level_strides(RESNET50_FPN.anchors, CANVAS, RESNET_MAPS)
    assert strides == ((4, 4), (8, 8), (16, 16), (32, 32), (61, 64))


def test_lites_strides_are_fixed() -> None:
    maps = ((48, 48), (24, 24), (12, 12))
    assert level_strides(LITE.anchors, (384, 384), maps) == ((8, 8), (16, 16), (32, 32))


def test_a_level_without_anchor_sizes_is_an_error_that_says_so() -> None:
    config = replace(LITE.anchors, sizes=LITE.anchors.sizes[:2])
    with pytest.raises(ValueError, match="2 levels of anchor sizes for 3 feature maps"):
        grid_anchors(config, (32, 32), ((4, 4), (2, 2), (1, 1)), CPU)


@pytest.mark.parametrize(
    ("config", "strides", "tolerance"),
    [
        (LITE.anchors, (8, 16, 32), 1e-3),
        (RESNET50_FPN.anchors, (4, 8, 16, 32, 64), 0.51),
        (PAPER_VGG16.anchors, (16,), 11),
    ],
)
def test_an_anchor_can_be_rebuilt_from_its_level_cell_size_and_ratio(
    config: AnchorConfig, strides: tuple[int, ...], tolerance: float
) -> None:
    # torchvision rounds corners; py-faster-rcnn rounds the sides for one cell, then multiplies them by up to 32.
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


def test_locations_of_anchors_in_any_order() -> None:
    location = anchor_locations(LITE.anchors, ((4, 4), (2, 2), (1, 1)), torch.tensor([125, 0, 96, 95, 7]))
    assert location.levels.tolist() == [2, 0, 1, 0, 0]
    assert location.rows.tolist() == [0, 0, 0, 3, 0]
    assert location.columns.tolist() == [0, 0, 0, 3, 1]
    assert location.sizes.tolist() == [288, 20, 64, 36, 36]
    assert location.ratios.tolist() == [2.0, 0.5, 0.5, 2.0, 0.5]
    assert anchor_locations(LITE.anchors, ((1, 1),) * 3, torch.zeros(0, dtype=torch.int64)).levels.shape == (0,)
