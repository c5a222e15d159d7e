"""Small checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import checkpoint
from tests.model.checkpoint.states import CLASSES, PRESET, small_state


@pytest.fixture
def weights_folder(tmp_path: Path) -> Path:
    """Make a folder with a manifest of two checkpoints: one that is bundled, and one that is not fetched yet."""
    digest = checkpoint.save(
        tmp_path / "bundled.safetensors", small_state(), preset=PRESET, classes=CLASSES, metrics={"ap": 0.5}
    )
    (tmp_path / "manifest.toml").write_text(
        f"""
        [classes]
        pets = ["__background__", "cat", "dog"]
        [[checkpoint]]
        name = "bundled"
        preset = "LITE"
        file = "bundled.safetensors"
        sha256 = "{digest}"
        classes = "pets"
        metrics = {{ ap = 0.5 }}
        licence = "Apache-2.0"
        score_threshold = 0.3
        description = "A test's."
        [[checkpoint]]
        name = "remote"
        preset = "RESNET50_FPN"
        file = "remote-0123abcd.pth"
        sha256 = "0123abcd"
        classes = ["cat", "dog"]
        licence = "BSD-3-Clause"
        source = "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"
        description = "Somewhere else."
        """,
        encoding="utf-8",
    )
    return tmp_path
