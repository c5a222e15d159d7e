"""Fixtures and hooks of all tests: few threads, the data sets where they exist, and a notice of what is not checked."""

import json
import os

# Before torch is imported, which reads it once. More threads than cores would make a small machine slower.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from model.checkpoint import save
from model.detector import Detector

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NO_DATA = f"needs the data sets, and there is no {DATA.relative_to(DATA.parents[1])} beside the repository"
NO_GPU = "needs a CUDA device, and torch sees none"

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason."""
    for item in items:
        if item.get_closest_marker("data") and not DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=NO_DATA))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print in colour what a successful run did not check."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for reason in (NO_DATA, NO_GPU):
        count = sum(reason in text for text in skipped)
        if count:
            terminalreporter.write_line(f"NOT CHECKED HERE: {count} test(s): {reason}", yellow=True, bold=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed the random numbers, so that a test draws the same alone and among others."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Return the top folder of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def voc20() -> Path:
    """Return the folder of voc20 (`images/`, `train.json`, `test.json`); mark its tests with `data`."""
    path = DATA / "voc20"
    if not path.is_dir():
        pytest.skip(NO_DATA)
    return path


@pytest.fixture(scope="session")
def chelsea() -> np.ndarray:
    """Return a cat, uint8 [300, 451, 3] RGB (CC0, from scikit-image)."""
    from skimage import data

    return np.asarray(data.chelsea())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save random weights in a file that the manifest does not list, and return its path."""
    path, classes = tmp_path / "mine.safetensors", ("__background__", "thing")
    detector = Detector.random("LITE", classes=classes, precision="fp32")
    save(path, detector.model.state_dict(), preset="LITE", classes=classes, metrics={})
    return path


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write COCO JSON, splits ``train`` (24) and ``test`` (8): a white square or a black disc on grey, 128 x 96."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        (folder / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            side = int(rng.integers(30, 60))
            x, y = int(rng.integers(0, 128 - side)), int(rng.integers(0, 96 - side))
            image = Image.new("RGB", (128, 96), (110, 110, 110))
            draw = ImageDraw.Draw(image)
            corners = (x, y, x + side, y + side)
            if number % 2:
                draw.rectangle(corners, fill="white")
            else:
                draw.ellipse(corners, fill="black")
            image.save(folder / "images" / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 128, "height": 96})
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [x, y, side, side]}
            )
        categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
        labels = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(labels))
    return folder
