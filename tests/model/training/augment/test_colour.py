"""Changes of light and colour."""

import numpy as np
import pytest
import torch

from model.training.augment.colour import ColourConfig, jitter_colours


def test_colour_is_left_alone_when_nothing_is_drawn():
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    assert jitter_colours(pixels, ColourConfig(chance=0.0), np.random.default_rng(0)) is pixels


def test_colour_changes_of_no_strength_change_nothing():
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    config = ColourConfig(brightness=0, contrast=0, saturation=0, hue=0, chance=1)
    assert torch.equal(jitter_colours(pixels, config, np.random.default_rng(0)), pixels)


def test_grey_stays_grey_under_saturation_and_hue():
    pixels = torch.randint(0, 256, (1, 20, 30), dtype=torch.uint8).expand(3, -1, -1)
    config = ColourConfig(brightness=0, contrast=0, saturation=0.9, hue=90, chance=1)
    assert int((jitter_colours(pixels, config, np.random.default_rng(1)).int() - pixels.int()).abs().max()) <= 1


def test_brightness_scales_and_saturates_instead_of_wrapping_around():
    pixels = torch.full((3, 4, 4), 250, dtype=torch.uint8)
    config = ColourConfig(brightness=0.3, contrast=0, saturation=0, hue=0, chance=1)
    results = [int(jitter_colours(pixels, config, np.random.default_rng(seed))[0, 0, 0]) for seed in range(30)]
    assert max(results) == 255
    assert min(results) >= 174


def test_contrast_keeps_the_mean():
    pixels = torch.randint(100, 156, (1, 64, 64), dtype=torch.uint8).expand(3, -1, -1)
    config = ColourConfig(brightness=0, contrast=0.5, saturation=0, hue=0, chance=1)
    result = jitter_colours(pixels, config, np.random.default_rng(0))
    assert float(result.float().mean()) == pytest.approx(float(pixels.float().mean()), abs=1)
    assert float(result.float().std()) != pytest.approx(float(pixels.float().std()), rel=0.05)
