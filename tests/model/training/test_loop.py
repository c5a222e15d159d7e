"""The loop: it learns, it resumes to the same state, it stops on nonsense."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from model.config import LITE
from model.training.augment import PLAIN, AugmentConfig
from model.training.data import Dataset, load_coco
from model.training.log import Log
from model.training.trainer import Finish, Recipe, Trainer, TrainingError, new_model, rate

RECIPE = Recipe(epochs=4, batch_size=2, lr=1e-3, body_lr=1e-3, warmup=2, canvas=(64, 96), augment=PLAIN, frozen=())


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six pictures with a white square each, on grey."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 7):
        x, y, side = (int(rng.integers(*limits)) for limits in ((4, 50), (4, 24), (20, 32)))
        picture = Image.new("RGB", (96, 64), (90, 90, 90))
        ImageDraw.Draw(picture).rectangle((x, y, x + side, y + side), fill="white")
        picture.save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, side, side], "area": side**2,
             "iscrowd": 0}
        )  # fmt: skip
    labels = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "labels.json").write_text(json.dumps(labels))
    return load_coco(folder / "labels.json", folder)


def _trainer(dataset: Dataset, recipe: Recipe = RECIPE) -> Trainer:
    config = replace(LITE, train=replace(LITE.train, rpn_batch=32, roi_batch=16))
    return Trainer(new_model(config.with_classes(2)), dataset, recipe)


def test_the_losses_fall(squares: Dataset) -> None:
    trainer = _trainer(squares, replace(RECIPE, epochs=10))
    totals: list[float] = []
    trainer.run(lambda _, losses: totals.append(float(losses.total())))
    assert len(totals) == trainer.steps == 30
    assert np.mean(totals[-5:]) < 0.75 * np.mean(totals[:5])


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(squares: Dataset, tmp_path: Path) -> None:
    through = _trainer(squares)
    through.run()
    first = _trainer(squares)
    first.run(until=5)
    first.save(tmp_path / "checkpoint.pt")
    second = _trainer(squares)
    second.load(tmp_path / "checkpoint.pt")
    assert second.step == 5
    second.run()
    assert second.step == through.step == 12
    for (name, mine), theirs in zip(second.averaged_state().items(), through.averaged_state().values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=0, rtol=0, msg=name)


def test_frozen_parts_keep_their_weights(squares: Dataset) -> None:
    trainer = _trainer(squares, replace(RECIPE, frozen=("backbone.body.stem",)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run(until=2)
    after = trainer.averaged_state()
    assert torch.equal(before["backbone.body.stem.conv.weight"], after["backbone.body.stem.conv.weight"])
    assert not torch.equal(before["rpn.head.bbox_pred.weight"], after["rpn.head.bbox_pred.weight"])


def test_a_checkpoint_of_another_model_is_refused(squares: Dataset, tmp_path: Path) -> None:
    other = Trainer(new_model(replace(LITE.with_classes(2), fpn_channels=64)), squares, RECIPE)
    other.save(tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="cannot be resumed"):
        _trainer(squares).load(tmp_path / "checkpoint.pt")


def test_a_truncated_checkpoint_is_refused(squares: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    _trainer(squares).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="cannot be resumed"):
        _trainer(squares).load(path)


def test_data_of_another_number_of_classes_is_refused(squares: Dataset) -> None:
    with pytest.raises(TrainingError, match="21 classes with background, the data 2"):
        Trainer(new_model(LITE), squares, RECIPE)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_pictures(squares: Dataset) -> None:
    trainer = _trainer(squares)
    with torch.no_grad():
        trainer.model.rpn.head.cls_logits.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"nan at step 0, on pictures \[\d, \d\]"):
        trainer.run()


def test_the_rate_rises_and_then_falls_along_a_cosine() -> None:
    recipe = replace(RECIPE, warmup=10, lr_end=0.0)
    rates = [rate(recipe, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 0.001


def test_the_log_has_the_mean_losses_of_every_so_many_steps(squares: Dataset, tmp_path: Path) -> None:
    trainer = _trainer(squares)
    log = Log(tmp_path / "log.jsonl", trainer, every=5)
    trainer.run(log)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert {"objectness", "rpn_box", "classes", "roi_box", "epoch", "seconds_per_picture"} <= set(lines[0])


def test_the_last_epochs_look_otherwise_where_a_recipe_has_a_finish() -> None:
    last = AugmentConfig(flip=0.0)
    recipe = replace(RECIPE, epochs=4, finish=Finish(epochs=1, canvas=(96, 128), augment=last))
    assert [recipe.look(epoch) for epoch in range(4)] == [((64, 96), PLAIN)] * 3 + [((96, 128), last)]
    assert {replace(recipe, finish=None).look(epoch) for epoch in range(4)} == {((64, 96), PLAIN)}


def test_a_run_reaches_its_finish_resumed_or_not(squares: Dataset, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2, finish=Finish(epochs=1, canvas=(96, 128), augment=PLAIN))

    def canvases(trainer: Trainer) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        learn = trainer.objective

        def watch(model, batch, truths, generators, total):  # type: ignore[no-untyped-def]
            seen.append(batch.canvas)
            return learn(model, batch, truths, generators, total)

        trainer.objective = watch
        trainer.run()
        return seen

    assert canvases(_trainer(squares, recipe)) == [(64, 96)] * 3 + [(96, 128)] * 3
    first = _trainer(squares, recipe)
    first.run(until=4)
    first.save(tmp_path / "checkpoint.pt")
    second = _trainer(squares, recipe)
    second.load(tmp_path / "checkpoint.pt")
    assert canvases(second) == [(96, 128)] * 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"epochs": 0}, "epochs cannot be 0"),
        ({"epochs": float("nan")}, "epochs cannot be nan"),
        ({"batch_size": 0, "lr": -1.0}, "batch_size cannot be 0, lr cannot be -1.0"),
        ({"ema": 1.5}, "ema cannot be 1.5"),
        ({"canvas": (0, 96)}, r"canvas cannot be \(0, 96\)"),
        ({"epochs": 2, "finish": Finish(3, (96, 128), PLAIN)}, "a finish of 3 epochs needs whole epochs in all, not 2"),
        ({"epochs": 2.5, "finish": Finish(1, (96, 128), PLAIN)}, "needs whole epochs in all, not 2.5"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_when_it_is_made(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(RECIPE, **change)  # type: ignore[arg-type]
