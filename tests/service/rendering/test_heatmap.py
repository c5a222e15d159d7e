"""The heat map over an image."""

import numpy as np
import pytest

from service.rendering import heatmap
from service.rendering.heatmap import HeatMap, draw_heat_maps


@pytest.mark.parametrize("origin", [(0.0, 0.0), (4.0, 4.0)])
def test_a_hot_cell_glows_where_its_anchors_are_centred(origin):
    values = np.zeros((6, 8), np.float32)
    values[2, 5] = 1.0
    heat = HeatMap(0, values, origin, (8.0, 10.0))
    grey = np.full((60, 64, 3), 128, np.uint8)
    drawn = np.asarray(draw_heat_maps(grey, [heat]), int)
    red = drawn[..., 0] - drawn[..., 2]
    red[:14, :45] = -255  # the caption
    y, x = np.unravel_index(red.argmax(), red.shape)
    assert abs(x + 0.5 - (origin[0] + 5 * 8)) <= 1
    assert abs(y + 0.5 - (origin[1] + 2 * 10)) <= 1
    assert np.ptp(drawn[40:], axis=(0, 1)).max() == 0  # cold to the very edges
    wide = draw_heat_maps(np.full((300, 1280, 3), 128, np.uint8), [heat, heat])
    assert wide.size == (1280, 150)


def test_bands_are_as_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    heat = HeatMap(0, rng.random((6, 8), np.float32), (4.0, 4.0), (8.0, 10.0))
    image = rng.integers(0, 256, (60, 64, 3), dtype=np.uint8)
    whole = np.asarray(draw_heat_maps(image, [heat]), int)
    for band in (50, 300):
        monkeypatch.setattr(heatmap, "BAND_PIXELS", band)
        assert np.abs(np.asarray(draw_heat_maps(image, [heat])) - whole).max() <= 1  # rounding
