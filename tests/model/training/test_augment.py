"""Changing a picture must change its labels with it, and the same seed must give the same batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.training.augment import (
    PLAIN,
    AugmentConfig,
    Batches,
    TrainPicture,
    augment,
    collate,
    crop_resize,
    flip,
    mosaic,
    place,
    prefetch,
)
from model.training.colour import ColourConfig, recolour
from model.training.data import BACKGROUND, Dataset, Sample

RED = torch.tensor([255, 0, 0], dtype=torch.uint8)


def picture(boxes, height=100, width=200, ignore=None) -> TrainPicture:
    """Black, with each box painted red."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    pixels = torch.zeros((3, height, width), dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes.astype(int):
        pixels[0, y1:y2, x1:x2] = 255
    ignored = np.zeros(len(boxes), bool) if ignore is None else np.array(ignore)
    return TrainPicture(pixels, boxes, np.arange(1, len(boxes) + 1), ignored)


def red_box(pixels: torch.Tensor) -> list[int]:
    ys, xs = torch.where(pixels[0] > 127)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Seven landscapes, a square and three portraits of noise, with a box each."""
    rng = np.random.default_rng(0)
    samples = []
    for i, (width, height) in enumerate([(48, 32)] * 7 + [(40, 40)] + [(32, 48)] * 3):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        samples.append(
            Sample(
                path,
                i,
                width,
                height,
                np.array([[4, 5, 20, 25]], np.float32),
                np.array([1]),
                np.array([False]),
                np.array([320], np.float32),
            )
        )
    return Dataset(tuple(samples), (BACKGROUND, "thing"))


def test_resizing_moves_boxes_with_the_pixels():
    result = crop_resize(picture([[20, 10, 60, 50]]), (0, 0, 100, 200), (50, 300), 0.3, 2)
    assert result.pixels.shape == (3, 50, 300)
    assert result.boxes.tolist() == [[30, 5, 90, 25]]
    assert np.abs(np.array(red_box(result.pixels)) - result.boxes[0]).max() <= 1


def test_flipping_moves_boxes_with_the_pixels_and_twice_is_nothing():
    original = picture([[20, 10, 60, 50]])
    result = flip(original)
    assert result.boxes.tolist() == [[140, 10, 180, 50]]
    assert red_box(result.pixels) == [140, 10, 180, 50]
    assert flip(result).boxes.tolist() == original.boxes.tolist()
    assert torch.equal(flip(result).pixels, original.pixels)


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
def test_cropping_keeps_objects_ignores_slivers_and_drops_what_is_gone(box, expected, ignored):
    window = (20, 50, 60, 100)  # top, left, height, width
    result = crop_resize(picture([box]), window, (60, 100), min_visible=0.3, min_side=2)
    np.testing.assert_allclose(result.boxes, np.array(expected, np.float32).reshape(-1, 4), atol=1e-4)
    assert result.ignore.tolist() == ignored
    assert len(result.class_ids) == len(expected)


def test_boxes_that_shrink_below_two_pixels_are_ignored():
    result = crop_resize(picture([[10, 10, 18, 60]]), (0, 0, 100, 200), (20, 40), min_visible=0.3, min_side=2)
    assert result.boxes.tolist() == pytest.approx(np.array([[2, 2, 3.6, 12]]))
    assert result.ignore.tolist() == [True]


def test_ignored_boxes_move_along_and_stay_ignored():
    both = picture([[20, 10, 60, 50], [100, 20, 150, 90]], ignore=[False, True])
    result = crop_resize(flip(both), (0, 0, 100, 200), (50, 100), 0.3, 2)
    assert result.boxes.tolist() == [[70, 5, 90, 25], [25, 10, 50, 45]]
    assert result.ignore.tolist() == [False, True]
    assert result.class_ids.tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_drawn_boxes_stay_on_their_objects_and_content_on_its_canvas(seed):
    rng = np.random.default_rng(seed)
    config = AugmentConfig(scale=(0.5, 2.0), stretch=1.3, colour=ColourConfig(chance=0.0))
    result = augment(picture([[60, 20, 140, 80]]), (72, 96), config, rng)
    height, width = result.pixels.shape[1:]
    assert height <= 72
    assert width <= 96
    for box in result.boxes:
        assert (box >= 0).all()
        assert (box <= [width, height, width, height]).all()
        assert np.abs(np.array(red_box(result.pixels)) - box).max() <= 1.5


def test_the_plain_configuration_only_fits_the_picture_onto_the_canvas():
    result = augment(picture([[20, 10, 60, 50]]), (72, 96), PLAIN, np.random.default_rng(0))
    assert result.pixels.shape == (3, 48, 96)
    assert result.boxes[0].tolist() == pytest.approx([9.6, 4.8, 28.8, 24.0])


def test_covering_leaves_no_gap_however_small_the_scale():
    config = AugmentConfig(scale=(0.3, 0.5), stretch=1.5)
    for seed in range(20):
        result = place(picture([]), (70, 90), config, np.random.default_rng(seed), cover=True)
        assert result.pixels.shape == (3, 70, 90)


def test_a_mosaic_fills_the_canvas_with_four_pictures():
    config = AugmentConfig(scale=(1.0, 1.0), flip=0.0, colour=ColourConfig(chance=0.0))
    parts = [picture([[0, 0, 200, 100]]) for _ in range(4)]
    result = mosaic(parts, (72, 96), config, np.random.default_rng(0))
    assert result.pixels.shape == (3, 72, 96)
    assert bool((result.pixels[0] == 255).all())
    assert result.boxes.shape == (4, 4)
    areas = (result.boxes[:, 2] - result.boxes[:, 0]) * (result.boxes[:, 3] - result.boxes[:, 1])
    assert areas.sum() == pytest.approx(72 * 96)


def test_colour_is_left_alone_when_nothing_is_drawn():
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    assert recolour(pixels, ColourConfig(chance=0.0), np.random.default_rng(0)) is pixels


def test_colour_changes_of_no_strength_change_nothing():
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    config = ColourConfig(brightness=0, contrast=0, saturation=0, hue=0, chance=1)
    assert torch.equal(recolour(pixels, config, np.random.default_rng(0)), pixels)


def test_grey_stays_grey_under_saturation_and_hue():
    pixels = torch.randint(0, 256, (1, 20, 30), dtype=torch.uint8).expand(3, -1, -1)
    config = ColourConfig(brightness=0, contrast=0, saturation=0.9, hue=90, chance=1)
    assert int((recolour(pixels, config, np.random.default_rng(1)).int() - pixels.int()).abs().max()) <= 1


def test_brightness_scales_and_saturates_instead_of_wrapping_around():
    pixels = torch.full((3, 4, 4), 250, dtype=torch.uint8)
    config = ColourConfig(brightness=0.3, contrast=0, saturation=0, hue=0, chance=1)
    results = [int(recolour(pixels, config, np.random.default_rng(seed))[0, 0, 0]) for seed in range(30)]
    assert max(results) == 255
    assert min(results) >= 174


def test_contrast_keeps_the_mean():
    pixels = torch.randint(100, 156, (1, 64, 64), dtype=torch.uint8).expand(3, -1, -1)
    config = ColourConfig(brightness=0, contrast=0.5, saturation=0, hue=0, chance=1)
    result = recolour(pixels, config, np.random.default_rng(0))
    assert float(result.float().mean()) == pytest.approx(float(pixels.float().mean()), abs=1)
    assert float(result.float().std()) != pytest.approx(float(pixels.float().std()), rel=0.05)


def test_a_batch_holds_content_at_the_top_left_and_filler_elsewhere():
    small, large = picture([[0, 0, 4, 4]], 8, 10), picture([[2, 2, 9, 9], [0, 0, 5, 5]], 16, 24)
    batch = collate([small, large], (16, 24), filler=(1, 2, 3))
    assert batch.pixels.shape == (2, 3, 16, 24)
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes.tolist() == [[8, 10], [16, 24]]
    assert torch.equal(batch.pixels[0, :, :8, :10], small.pixels)
    assert batch.pixels[0, :, 8:].unique().tolist() == [1, 2, 3]
    assert batch.pixels[0, :, 3, 20].tolist() == [1, 2, 3]
    assert torch.equal(batch.pixels[1], large.pixels)
    assert [len(boxes) for boxes in batch.boxes] == [1, 2]
    assert len(batch) == 2


def test_every_picture_comes_once_an_epoch_and_every_batch_has_one_canvas_and_size(dataset):
    batches = Batches(dataset, canvas=(36, 48), batch_size=2)
    assert len(batches) == 6  # eight landscapes and squares, three portraits and one again
    seen = np.concatenate([batches[step].indices.numpy() for step in range(len(batches))])
    assert sorted(np.unique(seen).tolist()) == list(range(11))
    assert len(seen) == 12
    for step in range(len(batches)):
        batch = batches[step]
        tall = dataset.samples[int(batch.indices[0])].height > dataset.samples[int(batch.indices[0])].width
        assert batch.pixels.shape == ((2, 3, 48, 36) if tall else (2, 3, 36, 48))
    with pytest.raises(IndexError):
        batches[6]


def test_a_group_smaller_than_a_batch_still_fills_one(dataset):
    batches = Batches(dataset.subset([8, 9]), canvas=(36, 48), batch_size=5)
    assert len(batches) == 1
    assert set(batches[0].indices.tolist()) == {0, 1}


def test_batches_follow_from_seed_epoch_and_step_alone(dataset):
    config = AugmentConfig(mosaic=0.5)
    first = Batches(dataset, (36, 48), 2, config, seed=1, epoch=2)
    again = Batches(dataset, (36, 48), 2, config, seed=1, epoch=2)
    for step in (4, 0, 5):  # in any order
        a, b = first[step], again[step]
        assert torch.equal(a.pixels, b.pixels)
        assert all(torch.equal(x, y) for x, y in zip(a.boxes, b.boxes, strict=True))
    for other in (
        Batches(dataset, (36, 48), 2, config, seed=1, epoch=3),
        Batches(dataset, (36, 48), 2, config, seed=2),
    ):
        assert other.plan.tolist() != first.plan.tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_epoch_goes_on_with_the_batches_it_would_have_had(dataset, workers):
    batches = Batches(dataset, (36, 48), 2)
    resumed = list(prefetch(batches, start=4, workers=workers))
    assert len(resumed) == 2
    for step, batch in enumerate(resumed, start=4):
        assert torch.equal(batch.pixels, batches[step].pixels)
        assert torch.equal(batch.boxes[0], batches[step].boxes[0])
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
