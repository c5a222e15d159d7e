"""The log has the mean losses of each interval of steps."""

import json
from dataclasses import replace
from pathlib import Path

from model.data import Dataset
from model.presets import LITE
from model.training.augment import PLAIN
from model.training.config import TrainingConfig
from model.training.log import LossLog
from model.training.trainer import Trainer, new_model

CONFIG = TrainingConfig(
    epochs=4, batch_size=2, lr=1e-3, body_lr=1e-3, warmup=2, canvas=(64, 96), augment=PLAIN, frozen=()
)


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
