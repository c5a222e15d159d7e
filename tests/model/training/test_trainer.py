"""The trainer learns, resumes to the same state, and stops at a loss that is not finite."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data import Dataset
from model.presets import LITE, RESNET50_FPN_V2
from model.training.augment import PLAIN
from model.training.config import Finish, TrainingConfig, TrainingError
from model.training.distributed import Processes
from model.training.trainer import Trainer, new_model

CONFIG = TrainingConfig(
    epochs=4, batch_size=2, lr=1e-3, body_lr=1e-3, warmup=2, canvas=(64, 96), augment=PLAIN, frozen=()
)


def _trainer(dataset: Dataset, config: TrainingConfig = CONFIG) -> Trainer:
    detector = replace(LITE, sampling=replace(LITE.sampling, rpn_batch=32, roi_batch=16))
    return Trainer(new_model(detector.with_classes(2)), dataset, config)


def test_the_losses_fall(squares: Dataset) -> None:
    trainer = _trainer(squares, replace(CONFIG, epochs=10))
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
    for (name, value), expected in zip(second.averaged_state().items(), through.averaged_state().values(), strict=True):
        torch.testing.assert_close(value, expected, atol=0, rtol=0, msg=name)


def test_frozen_parts_keep_their_weights(squares: Dataset) -> None:
    trainer = _trainer(squares, replace(CONFIG, frozen=("backbone.body.stem",)))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run(until=2)
    after = trainer.averaged_state()
    assert torch.equal(before["backbone.body.stem.conv.weight"], after["backbone.body.stem.conv.weight"])
    assert not torch.equal(before["rpn.head.bbox_pred.weight"], after["rpn.head.bbox_pred.weight"])


def test_a_frozen_prefix_that_no_parameter_has_is_refused(squares: Dataset) -> None:
    with pytest.raises(TrainingError, match=r"No parameter of LITE begins with backbone.body.layer1: mend `frozen`"):
        _trainer(squares, replace(CONFIG, frozen=("backbone.body.stem", "backbone.body.layer1")))


def test_a_checkpoint_of_another_model_is_refused(squares: Dataset, tmp_path: Path) -> None:
    other = Trainer(new_model(replace(LITE.with_classes(2), fpn_channels=64)), squares, CONFIG)
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
        Trainer(new_model(LITE), squares, CONFIG)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(squares: Dataset) -> None:
    trainer = _trainer(squares)
    with torch.no_grad():
        trainer.model.rpn.head.cls_logits.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"nan at step 0, on images \[\d, \d\]"):
        trainer.run()


def test_a_run_reaches_its_finish_resumed_or_not(squares: Dataset, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=2, finish=Finish(epochs=1, canvas=(96, 128), augment=PLAIN))

    def canvases(trainer: Trainer) -> list[tuple[int, ...]]:
        canvas_of_steps: list[tuple[int, ...]] = []
        objective = trainer.objective

        def record(model, batch, truths, generators, total):  # type: ignore[no-untyped-def]
            canvas_of_steps.append(batch.canvas)
            return objective(model, batch, truths, generators, total)

        trainer.objective = record
        trainer.run()
        return canvas_of_steps

    assert canvases(_trainer(squares, config)) == [(64, 96)] * 3 + [(96, 128)] * 3
    first = _trainer(squares, config)
    first.run(until=4)
    first.save(tmp_path / "checkpoint.pt")
    second = _trainer(squares, config)
    second.load(tmp_path / "checkpoint.pt")
    assert canvases(second) == [(96, 128)] * 2


def test_a_batch_smaller_than_the_processes_is_refused(squares: Dataset) -> None:
    with pytest.raises(TrainingError, match="A batch of 2 images leaves some of 3 processes without one"):
        Trainer(new_model(LITE.with_classes(2)), squares, TrainingConfig(batch_size=2), processes=Processes(0, 3))


def test_batch_norms_are_refused_in_several_processes(squares: Dataset) -> None:
    with torch.device("meta"):
        model = new_model(RESNET50_FPN_V2.with_classes(2))
    with pytest.raises(TrainingError, match="RESNET50_FPN_V2 has batch norms"):
        Trainer(model, squares, TrainingConfig(), processes=Processes(0, 2))
