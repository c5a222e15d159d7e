"""The log has the mean losses of every so many steps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from model.data import Dataset, load_coco
from model.presets import LITE
from model.training.augment import PLAIN
from model.training.config import TrainingConfig
from model.training.log import LossLog
from model.training.trainer import Trainer, new_model

CONFIG = TrainingConfig(
    epochs=4, batch_size=2, lr=1e-3, body_lr=1e-3, warmup=2, canvas=(64, 96), augment=PLAIN, frozen=()
)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six images with a white square each, on grey."""
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


def _trainer(dataset: Dataset, config: TrainingConfig = CONFIG) -> Trainer:
    detector = replace(LITE, sampling=replace(LITE.sampling, rpn_batch=32, roi_batch=16))
    return Trainer(new_model(detector.with_classes(2)), dataset, config)


def test_a_line_is_logged_every_so_many_steps(squares: Dataset, tmp_path: Path) -> None:
    trainer = _trainer(squares)
    log = LossLog(tmp_path / "log.jsonl", trainer, every=5)
    trainer.run(log)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert {"objectness", "rpn_box", "classes", "roi_box", "epoch", "seconds_per_image"} <= set(lines[0])
