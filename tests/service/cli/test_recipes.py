"""Training recipes in files."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from model.checkpoint import weights_dir
from model.faster_rcnn import FasterRCNN
from model.presets import PAPER_VGG16
from model.training.augment import AugmentConfig
from model.training.config import Finish, TrainingConfig, TrainingError
from service.cli.main import app
from service.cli.recipes import read_recipe


@pytest.fixture
def write(tmp_path: Path):
    def write(content: object) -> Path:
        file = tmp_path / "recipe.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    return write


def test_a_file_overrides_the_defaults(write):
    file = write({"epochs": 2, "augment": {"mosaic": 0.2}, "finish": {"epochs": 1, "canvas": [96, 128], "augment": {}}})
    expected = TrainingConfig(
        epochs=2.0, augment=AugmentConfig(mosaic=0.2), finish=Finish(1, canvas=(96, 128), augment=AugmentConfig())
    )
    assert read_recipe(file, {}) == expected


def test_options_override_the_file_and_both_are_optional(write):
    file = write({"epochs": 2, "lr": 1e-3})
    assert read_recipe(file, {"lr": 1e-4}) == TrainingConfig(epochs=2.0, lr=1e-4)
    assert read_recipe(None, {"epochs": 3.0}) == TrainingConfig(epochs=3.0)
    assert read_recipe(None, {}) == TrainingConfig()


def test_a_recipe_that_a_run_wrote_can_be_read(write):
    recipe = replace(
        TrainingConfig(), seed=7, frozen=("backbone.",), finish=Finish(2, (96, 128), AugmentConfig(flip=0.0))
    )
    assert read_recipe(write({"schedule": "joint"} | asdict(recipe)), {}) == recipe


def test_the_recipe_of_the_bundled_weights_has_a_finish():
    recipe = read_recipe(weights_dir() / "recipes" / "lite-voc20.json", {})
    assert recipe.finish is not None
    assert recipe.epoch_settings(0) != recipe.epoch_settings(int(recipe.epochs) - 1)


def test_the_papers_recipe_freezes_its_first_two_stages():
    recipe = read_recipe(weights_dir() / "recipes" / "paper-vgg16.json", {})
    with torch.device("meta"):
        names = [name for name, _ in FasterRCNN(PAPER_VGG16).named_parameters()]
    frozen = [name for name in names if name.startswith(recipe.frozen)]
    assert frozen == [
        f"backbone.body.features.{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")
    ]  # P 3.1.3
    assert recipe.canvas == (PAPER_VGG16.transform.min_size, PAPER_VGG16.transform.max_size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "a recipe has no epoch"),
        ({"augment": {"flp": 0.5}}, "a recipe has no augment.flp"),
        ({"epochs": 2, "finish": {"epochs": 1, "canvas": [9, 9], "augment": {"hue": 1}}}, "no finish.augment.hue"),
        ({"lr": "fast"}, "lr: Input should be a valid number"),
        ({"canvas": [96]}, "canvas.1: Field required"),
        ({"epochs": 0}, "epochs cannot be 0"),
        ({"epochs": 2, "finish": {"epochs": 3, "canvas": [9, 9], "augment": {}}}, "a finish of 3 epochs needs"),
        ('{"epochs":', "not a recipe"),
        ("[1, 2]", "not a recipe"),
    ],
)
def test_a_mistake_is_reported_with_the_name_of_the_file(write, content, message):
    file = write(content)
    with pytest.raises(TrainingError) as error:
        read_recipe(file, {})
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "pydantic" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"none\.json: not a recipe"):
        read_recipe(tmp_path / "none.json", {})


def test_train_refuses_a_bad_recipe_before_it_reads_the_data(write, tmp_path):
    file = write({"epoch": 3})
    done = CliRunner().invoke(
        app,
        ["train", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run"), "--recipe", str(file)],
        env={"COLUMNS": "1000"},
    )
    assert done.exit_code == 1
    assert "recipe.json: a recipe has no epoch." in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_help_names_the_recipes_own_defaults():
    help_text = " ".join(
        CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"}).output.split()
    )
    recipe = TrainingConfig()
    for name, value in {
        "passes over the images": f"{recipe.epochs:g}",
        "images a step": str(recipe.batch_size),
        "peak learning rate": "5e-4",
        "the same for the backbone's body": "2e-4",
    }.items():
        assert f"{name} (default {value})" in help_text
    assert (recipe.lr, recipe.body_lr) == (5e-4, 2e-4)
