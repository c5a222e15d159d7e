"""Buckets: few canvases, and each chosen by an image's size alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.presets import LITE, PRESETS, RESNET50_FPN
from model.runtime.buckets import Buckets
from model.transform import resized_size

SIDES = st.integers(1, 20_000)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
@pytest.mark.parametrize("mode", ["buckets", "exact"])
@given(height=SIDES, width=SIDES)
def test_every_image_fits_its_canvas(preset, mode, height, width) -> None:  # type: ignore[no-untyped-def]
    canvas = Buckets(preset.transform, mode).canvas_for(height, width)
    resized = resized_size(preset.transform, height, width)
    assert resized[0] <= canvas[0]
    assert resized[1] <= canvas[1]
    assert all(side % preset.transform.stride == 0 for side in canvas)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_buckets_are_few_and_in_both_orientations(preset) -> None:  # type: ignore[no-untyped-def]
    canvases = Buckets(preset.transform).canvases
    assert len(canvases) <= 13
    assert {(width, height) for height, width in canvases} == set(canvases)


def test_the_canvases_of_common_aspect_ratios() -> None:
    assert Buckets(LITE.transform).canvas_for(480, 640) == (384, 480)
    assert Buckets(RESNET50_FPN.transform).canvas_for(480, 640) == (800, 1088)
    assert Buckets(RESNET50_FPN.transform).canvas_for(640, 480) == (1088, 800)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'buckets' or 'exact'"):
        Buckets(LITE.transform, "square")  # type: ignore[arg-type]


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel, not 0x5"):
        Buckets(LITE.transform).canvas_for(0, 5)
