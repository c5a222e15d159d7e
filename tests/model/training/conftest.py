"""A data set of six small images."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from model.data import Dataset, load_coco


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Write six images with a white square each, on grey, 96 x 64."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 7):
        x, y, side = (int(rng.integers(*limits)) for limits in ((4, 50), (4, 24), (20, 32)))
        image = Image.new("RGB", (96, 64), (90, 90, 90))
        ImageDraw.Draw(image).rectangle((x, y, x + side, y + side), fill="white")
        image.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, side, side], "area": side**2,
             "iscrowd": 0}
        )  # fmt: skip
    labels = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "labels.json").write_text(json.dumps(labels))
    return load_coco(folder / "labels.json", folder)
