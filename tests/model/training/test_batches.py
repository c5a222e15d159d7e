"""Batches follow from the seed, and the same seed gives the same batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import BACKGROUND_NAME
from model.data import Dataset, Sample
from model.training.augment import AugmentConfig
from model.training.batches import Batches, collate, prefetch
from tests.model.training.augment.images import painted_image


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Write images of noise with a box each: seven landscapes, a square and three portraits."""
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
    return Dataset(tuple(samples), (BACKGROUND_NAME, "thing"))


def test_a_batch_holds_content_at_the_top_left_and_filler_elsewhere():
    small, large = painted_image([[0, 0, 4, 4]], 8, 10), painted_image([[2, 2, 9, 9], [0, 0, 5, 5]], 16, 24)
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


def test_every_image_comes_once_an_epoch_and_every_batch_has_one_canvas_and_size(dataset):
    batches = Batches(dataset, canvas=(36, 48), batch_size=2)
    assert len(batches) == 6  # eight landscapes and squares, three portraits, of which one comes twice
    indices = np.concatenate([batches[step].indices.numpy() for step in range(len(batches))])
    assert sorted(np.unique(indices).tolist()) == list(range(11))
    assert len(indices) == 12
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
