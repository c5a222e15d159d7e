"""What a run refuses before it trains. ``tests/integration/test_training_commands.py`` trains."""

import json
from pathlib import Path

import pytest

from model.data import DataError
from model.training.augment import PLAIN
from model.training.config import Finish, TrainingConfig, TrainingError
from model.training.run import train

CONFIG = TrainingConfig(epochs=2, batch_size=2, canvas=(96, 128), augment=PLAIN, frozen=())


def test_alternating_training_with_a_finish_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    config = TrainingConfig(epochs=2, finish=Finish(1, (96, 128), PLAIN))
    with pytest.raises(TrainingError, match="leave the finish out"):
        train(shapes_folder, tmp_path / "run", start="nothing", config=config, schedule="alternating")
    assert not (tmp_path / "run").exists()


def test_a_class_without_a_box_is_refused(shapes_folder: Path, tmp_path: Path) -> None:
    labels = json.loads((shapes_folder / "train.json").read_text())
    labels["categories"].append({"id": 3, "name": "star"})
    (tmp_path / "train.json").write_text(json.dumps(labels))
    (tmp_path / "images").symlink_to(shapes_folder / "images")
    with pytest.raises(DataError, match="no box of class 'star' in train"):
        train(tmp_path, tmp_path / "run", start="nothing", config=CONFIG)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_continued_with_other_settings(shapes_folder: Path, tmp_path: Path) -> None:
    recipe = {"schedule": "joint", "lr": 0.1}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(TrainingError, match=r"was started with another .*lr"):
        train(shapes_folder, tmp_path, start="nothing", config=CONFIG)
