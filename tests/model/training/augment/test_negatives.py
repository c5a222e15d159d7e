"""Negatives show no labelled object of the photograph that they are made from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import BACKGROUND_NAME
from model.data import Dataset, Sample
from model.training.augment import AugmentConfig
from model.training.augment.negatives import crop_background, draw_shapes, make_negative, tile_wallpaper
from model.training.batches import Batches

CANVAS = (48, 64)


def photograph(boxes: list[list[int]], height: int = 90, width: int = 120) -> tuple[torch.Tensor, np.ndarray]:
    """Make a green image with each box painted red, and its boxes."""
    pixels = torch.zeros((3, height, width), dtype=torch.uint8)
    pixels[1] = 200
    for x1, y1, x2, y2 in boxes:
        pixels[0, y1:y2, x1:x2], pixels[1, y1:y2, x1:x2] = 255, 0
    return pixels, np.array(boxes, np.float32).reshape(-1, 4)


@pytest.mark.parametrize("seed", range(20))
def test_a_piece_of_background_touches_no_box(seed: int) -> None:
    pixels, boxes = photograph([[0, 0, 40, 90], [80, 30, 120, 60]])
    piece = crop_background(pixels, boxes, np.random.default_rng(seed), 6, 32)
    assert piece is not None
    assert piece.shape[1] == piece.shape[2] <= 32
    assert int(piece[0].max()) == 0
    assert int(piece[1].min()) == 200


def test_there_is_no_background_where_a_box_fills_the_image() -> None:
    pixels, boxes = photograph([[0, 0, 120, 90]])
    assert crop_background(pixels, boxes, np.random.default_rng(0), 6, 32) is None


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("boxes", [[], [[10, 10, 60, 60]], [[0, 0, 120, 90]]])
def test_every_photograph_gives_an_image_that_fills_the_canvas(seed: int, boxes: list[list[int]]) -> None:
    image = make_negative(*photograph(boxes), CANVAS, np.random.default_rng(seed))
    assert image.shape == (3, *CANVAS)
    assert image.dtype == torch.uint8


def test_wallpaper_of_one_colour_is_one_colour() -> None:
    image = tile_wallpaper(torch.full((3, 9, 13), 77, dtype=torch.uint8), CANVAS, np.random.default_rng(1))
    assert len(image.flatten(1).unique()) == 1


def test_wallpaper_repeats_its_piece_all_over_the_canvas() -> None:
    piece = torch.zeros((3, 8, 8), dtype=torch.uint8)
    piece[:, :4] = 255
    image = tile_wallpaper(piece, (384, 384), np.random.default_rng(3)).float()
    quarters = [image[:, y : y + 192, x : x + 192] for y in (0, 192) for x in (0, 192)]
    assert all(quarter.std() > 20 for quarter in quarters)
    means = torch.stack([quarter.mean() for quarter in quarters])
    assert float(means.max() - means.min()) < 30


def test_shapes_are_flat() -> None:
    pixels, _ = photograph([])
    for seed in range(10):
        image = draw_shapes(pixels, CANVAS, np.random.default_rng(seed))
        assert len(image.flatten(1).unique(dim=1).T) <= 14  # the ground, and at most thirteen shapes


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    samples = []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        Image.fromarray(photograph([[10, 10, 60, 60]])[0].permute(1, 2, 0).numpy()).save(path)
        box = np.array([[10, 10, 60, 60]], np.float32)
        samples.append(Sample(path, i, 120, 90, box, np.array([1]), np.array([False]), np.array([2500.0], np.float32)))
    return Dataset(tuple(samples), (BACKGROUND_NAME, "thing"))


def test_a_batch_of_negatives_has_no_boxes_and_is_the_same_again(dataset: Dataset) -> None:
    batches = Batches(dataset, CANVAS, 4, AugmentConfig(negative=1.0), seed=2)
    first, second = batches[0], batches[0]
    assert [len(boxes) for boxes in first.boxes] == [0] * 4
    assert first.sizes.tolist() == [list(CANVAS)] * 4
    assert torch.equal(first.pixels, second.pixels)


def test_without_the_option_every_image_keeps_its_box(dataset: Dataset) -> None:
    batch = Batches(dataset, CANVAS, 4, AugmentConfig(scale=(1.0, 1.0)), seed=2)[0]
    assert [len(boxes) for boxes in batch.boxes] == [1] * 4
