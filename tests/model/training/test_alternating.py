"""The four steps of alternating training (arXiv 1506.01497, section 3.2): the parts that each trains and shares."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.data import Dataset, load_dataset
from model.faster_rcnn import FasterRCNN
from model.presets import LITE
from model.training.alternating import STEPS, training_stages
from model.training.augment import PLAIN
from model.training.config import TrainingConfig
from model.training.losses import Objective
from model.training.trainer import Trainer, new_model

CONFIG = TrainingConfig(
    epochs=1, batch_size=2, lr=1e-3, body_lr=1e-3, warmup=2, canvas=(96, 128), augment=PLAIN, frozen=()
)


@pytest.fixture(scope="module")
def shapes(shapes_folder: Path) -> Dataset:
    return load_dataset(shapes_folder, "train")


def _initial_model() -> FasterRCNN:
    config = replace(LITE, sampling=replace(LITE.sampling, rpn_batch=32, roi_batch=16))
    return new_model(config.with_classes(3))


def test_each_step_changes_what_it_trains_and_nothing_else(shapes: Dataset) -> None:
    def make(model: FasterRCNN, config: TrainingConfig, objective: Objective) -> Trainer:
        return Trainer(model, shapes, config, objective=objective)

    def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
        return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}

    trained, steps, ends = [], [], []
    for stage in training_stages("alternating", CONFIG, _initial_model, make):
        model = stage.trainer.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        losses = []
        stage.trainer.run(lambda _, loss, losses=losses: losses.append(loss))
        trained.append(changed(before, model.state_dict()))
        steps.append(stage.trainer.steps)
        ends.append(stage.trainer.averaged_state())
        rpn_only = stage.name.endswith("rpn")
        assert all(
            (float(loss.classes) == 0) == rpn_only and (float(loss.objectness) != 0) == rpn_only for loss in losses
        )
    assert trained == [{"backbone", "rpn"}, {"backbone", "roi_heads"}, {"rpn"}, {"roi_heads"}]
    assert steps == [4, 2, 4, 2]  # 80k, 40k, 80k and 40k of twelve
    # The detector that ships: step 2's backbone, step 3's RPN, and step 4's detector.
    last = ends[3]
    assert all(torch.equal(last[k], ends[1][k]) for k in last if k.startswith("backbone"))
    assert all(torch.equal(last[k], ends[2][k]) for k in last if k.startswith("rpn"))
    assert not torch.equal(
        last["backbone.fpn.layer_blocks.0.0.weight"], ends[0]["backbone.fpn.layer_blocks.0.0.weight"]
    )


def test_the_steps_share_the_whole_budget() -> None:
    assert sum(step.share for step in STEPS) == pytest.approx(1)


def test_joint_training_is_one_stage_with_all_four_losses(shapes: Dataset) -> None:
    losses_of_steps = []
    for stage in training_stages("joint", CONFIG, _initial_model, lambda m, r, o: Trainer(m, shapes, r, objective=o)):
        stage.trainer.run(lambda _, losses: losses_of_steps.append(losses), until=1)
    (losses,) = losses_of_steps
    assert all(float(loss) > 0 for loss in losses)
