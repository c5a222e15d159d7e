"""Labelled images for the tests of evaluation."""

from pathlib import Path

import numpy as np

from model.config import BACKGROUND_NAME
from model.data import Dataset, Sample


def sample(image_id, boxes, class_ids, ignore=None, path=Path("none.png"), size=(200, 200)) -> Sample:
    """Make the labels of one image; size: width and height."""
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(
        path,
        image_id,
        *size,
        corners,
        np.array(class_ids, np.int64),
        np.zeros(len(corners), bool) if ignore is None else np.array(ignore, bool),
        ((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])),
    )


def dataset(*samples: Sample) -> Dataset:
    """Make a data set of the classes cat and dog."""
    return Dataset(samples, (BACKGROUND_NAME, "cat", "dog"))
