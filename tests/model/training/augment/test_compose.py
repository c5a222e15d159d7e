"""Augmented images and mosaics keep boxes on their objects."""

import numpy as np
import pytest

from model.training.augment import (
    PLAIN,
    AugmentConfig,
    augment_image,
    compose_mosaic,
)
from model.training.augment.colour import ColourConfig
from tests.model.training.augment.images import painted_image, red_box


@pytest.mark.parametrize("seed", range(20))
def test_boxes_stay_on_their_objects_and_content_on_its_canvas(seed):
    rng = np.random.default_rng(seed)
    config = AugmentConfig(scale=(0.5, 2.0), stretch=1.3, colour=ColourConfig(chance=0.0))
    result = augment_image(painted_image([[60, 20, 140, 80]]), (72, 96), config, rng)
    height, width = result.pixels.shape[1:]
    assert height <= 72
    assert width <= 96
    for box in result.boxes:
        assert (box >= 0).all()
        assert (box <= [width, height, width, height]).all()
        assert np.abs(np.array(red_box(result.pixels)) - box).max() <= 1.5


def test_the_plain_configuration_only_fits_the_image_onto_the_canvas():
    result = augment_image(painted_image([[20, 10, 60, 50]]), (72, 96), PLAIN, np.random.default_rng(0))
    assert result.pixels.shape == (3, 48, 96)
    assert result.boxes[0].tolist() == pytest.approx([9.6, 4.8, 28.8, 24.0])


def test_a_mosaic_fills_the_canvas_with_four_images():
    config = AugmentConfig(scale=(1.0, 1.0), flip=0.0, colour=ColourConfig(chance=0.0))
    parts = [painted_image([[0, 0, 200, 100]]) for _ in range(4)]
    result = compose_mosaic(parts, (72, 96), config, np.random.default_rng(0))
    assert result.pixels.shape == (3, 72, 96)
    assert bool((result.pixels[0] == 255).all())
    assert result.boxes.shape == (4, 4)
    areas = (result.boxes[:, 2] - result.boxes[:, 0]) * (result.boxes[:, 3] - result.boxes[:, 1])
    assert areas.sum() == pytest.approx(72 * 96)
