"""A tiny data set that can be learnt."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write COCO JSON, splits ``train`` (24) and ``test`` (8): a white square or a black disc on grey, 128 x 96."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        (folder / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            side = int(rng.integers(30, 60))
            x, y = int(rng.integers(0, 128 - side)), int(rng.integers(0, 96 - side))
            image = Image.new("RGB", (128, 96), (110, 110, 110))
            draw = ImageDraw.Draw(image)
            corners = (x, y, x + side, y + side)
            if number % 2:
                draw.rectangle(corners, fill="white")
            else:
                draw.ellipse(corners, fill="black")
            image.save(folder / "images" / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 128, "height": 96})
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [x, y, side, side]}
            )
        categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
        labels = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(labels))
    return folder
