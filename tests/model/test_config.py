"""The configuration of a detector."""

from dataclasses import replace

from model.config import AnchorConfig
from model.presets import RESNET50_FPN


def test_another_number_of_classes_changes_nothing_else() -> None:
    assert RESNET50_FPN.with_classes(3) == replace(RESNET50_FPN, num_classes=3)


def test_a_cell_has_an_anchor_for_each_size_and_ratio() -> None:
    assert AnchorConfig(sizes=((8.0, 16.0), (32.0, 64.0)), ratios=(0.5, 1.0, 2.0)).per_cell == 6
