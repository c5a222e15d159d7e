"""TrainingConfig refuses values out of range, and gives each epoch its settings and each step its rate."""

from dataclasses import replace

import pytest

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
