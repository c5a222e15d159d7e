import json
from pathlib import Path

import numpy as np
import pytest

from model.detector import Detector
from model.training.data import Dataset, Sample
from model.training.figures import figures


def test_figures_of_other_images_are_refused() -> None:
    detector = Detector.random("LITE", classes=("__background__", "cat"), device="cpu", precision="fp32")
    sample = Sample(
        path=Path("a.jpg"),
        image_id="a",
        width=10,
        height=10,
        boxes=np.array([[1, 1, 9, 9]], np.float32),
        class_ids=np.array([1]),
        ignore=np.array([False]),
        areas=np.array([64], np.float32),
    )
    dataset = Dataset((sample,), ("__background__", "cat"))
    result = figures(detector.info, [("a", sample.boxes, [0.9], [1])], dataset, "mine", "test")
    written = json.loads(json.dumps(result.to_dict()))
    assert {name: here - there for name, here, there in result.differences(written)} == {
        "ap50": 0,
        "ap": 0,
        "ap75": 0,
        "ar100": 0,
        "ap50 of cat": 0,
    }
    with pytest.raises(ValueError, match="those figures are of"):
        list(result.differences(written | {"pictures": 2}))
    with pytest.raises(ValueError, match="no figures of an evaluation"):
        list(result.differences({"data": "mine"}))
