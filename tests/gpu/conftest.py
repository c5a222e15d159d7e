"""Fixtures of this folder's tests. They run without ``service/`` and its packages: see ``standalone.ini``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.structures import Detections

WEB = Path(__file__).resolve().parents[2] / "service/web/examples"
NO_GPU = "needs a CUDA device, and torch sees none"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# A cat, uint8 [300, 451, 3]: scikit-image's `chelsea`, CC0.
CAT = np.asarray(Image.open(WEB / "chelsea.jpg").convert("RGB"))


@pytest.fixture
def cat() -> np.ndarray:
    """Return the image of the cat."""
    return CAT


def noise(height: int, width: int) -> np.ndarray:
    """Make an image of random pixels, uint8 [height, width, 3], the same for a size."""
    return np.random.default_rng(height * 100_003 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def distance(detections: Detections, expected: Detections) -> tuple[float, float]:
    """Return the largest difference of a box's side, pixels, and of a score, between equal lists of detections."""
    assert detections.class_ids.tolist() == expected.class_ids.tolist()
    if not len(expected):
        return 0.0, 0.0
    boxes = (detections.boxes - expected.boxes).abs().max()
    return float(boxes), float((detections.scores - expected.scores).abs().max())
