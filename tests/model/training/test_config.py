"""TrainingConfig refuses values out of range, and gives each epoch its settings and each step its rate."""

from dataclasses import replace

import pytest
import torch

from model.config import DetectorConfig
from model.faster_rcnn import FasterRCNN
from model.presets import LITE, MOBILENET_V3_FPN, PAPER_VGG16, RESNET50_FPN
from model.training.augment import PLAIN, AugmentConfig
from model.training.config import Finish, TrainingConfig, learning_rate_factor

CONFIG = TrainingConfig(
    epochs=4, batch_size=2, lr=1e-3, body_lr=1e-3, warmup=2, canvas=(64, 96), augment=PLAIN, frozen=()
)


def test_the_rate_rises_and_then_falls_along_a_cosine() -> None:
    config = replace(CONFIG, warmup=10, lr_end=0.0)
    rates = [learning_rate_factor(config, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 0.001


def test_the_last_epochs_have_the_settings_of_a_finish() -> None:
    last = AugmentConfig(flip=0.0)
    config = replace(CONFIG, epochs=4, finish=Finish(epochs=1, canvas=(96, 128), augment=last))
    assert [config.epoch_settings(epoch) for epoch in range(4)] == [((64, 96), PLAIN)] * 3 + [((96, 128), last)]
    assert {replace(config, finish=None).epoch_settings(epoch) for epoch in range(4)} == {((64, 96), PLAIN)}


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
def test_values_out_of_range_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(CONFIG, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("preset", "frozen", "trained"),
    [
        (LITE, "stages.1.1.depthwise.conv.weight", "stages.2.0.depthwise.conv.weight"),
        (RESNET50_FPN, "layer1.2.conv3.weight", "layer2.0.conv1.weight"),
        (MOBILENET_V3_FPN, "6.block.0.0.weight", "7.block.0.0.weight"),
        (PAPER_VGG16, "features.7.weight", "features.10.weight"),
    ],
    ids=["LITE", "RESNET50_FPN", "MOBILENET_V3_FPN", "PAPER_VGG16"],
)
def test_the_first_stages_of_every_backbone_are_frozen_by_default(
    preset: DetectorConfig, frozen: str, trained: str
) -> None:
    with torch.device("meta"):
        names = {name for name, _ in FasterRCNN(preset).named_parameters()}
    prefixes = TrainingConfig().frozen_prefixes(preset.backbone)
    assert {f"backbone.body.{frozen}", f"backbone.body.{trained}"} <= names
    assert f"backbone.body.{frozen}".startswith(prefixes)
    assert not f"backbone.body.{trained}".startswith(prefixes)


def test_a_recipe_says_what_is_frozen() -> None:
    assert replace(CONFIG, frozen=("rpn",)).frozen_prefixes("resnet50") == ("rpn",)
    assert CONFIG.frozen_prefixes("resnet50") == ()
