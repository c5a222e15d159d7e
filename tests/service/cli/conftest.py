"""An image file, and a detector that needs no checkpoint."""

from pathlib import Path

import pytest

from model.detector import Detector
from tests.service.conftest import CLASSES


@pytest.fixture
def cat_file(tmp_path: Path, cat_jpeg: bytes) -> Path:
    path = tmp_path / "cat.jpg"
    path.write_bytes(cat_jpeg)
    return path


@pytest.fixture
def random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands load random weights."""
    monkeypatch.setattr(
        "service.inference.detector.load_detector", lambda _: Detector.random("LITE", seed=0, classes=CLASSES)
    )
