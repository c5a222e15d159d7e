"""``frcnn train``, ``evaluate`` and ``calibrate``: their errors, and the file of quantization ranges."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.detector import Detector, NotFiniteError
from model.evaluation.report import load_split
from service.cli.main import app
from tests.service.memory_errors import OUT_OF_MEMORY

run = CliRunner().invoke


def test_calibrate_writes_what_int8_needs(cat_file, saved):
    assert run(app, ["calibrate", str(cat_file.parent), "--weights", str(saved)]).exit_code == 0
    assert json.loads(saved.with_suffix(".ranges.json").read_text())["images"] == 1
    detector = Detector.from_checkpoint(saved, precision="int8")
    assert detector.info.precision == "int8"


def test_calibrate_uses_count_images(cat_file, saved):
    for number in range(5):
        cat_file.with_name(f"{number}.jpg").write_bytes(cat_file.read_bytes())
    assert run(app, ["calibrate", str(cat_file.parent), "--weights", str(saved), "--count", "3"]).exit_code == 0
    assert json.loads(saved.with_suffix(".ranges.json").read_text())["images"] == 3


def test_calibrate_names_an_image_that_cannot_be_used(cat_file, saved, tmp_path):
    command = ["calibrate", "--weights", str(saved)]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(cat_file.read_bytes()[:500])
    done = run(app, [*command, str(broken)])
    assert done.exit_code == 1
    assert "broken.jpg" in done.output.replace("\n", "")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(app, [*command, str(empty)])
    assert done.exit_code == 1
    assert "There are no " in done.output
    assert not saved.with_suffix(".ranges.json").exists()


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_training_and_evaluating_without_memory_end_with_advice(monkeypatch, command):
    def no_memory(*_: object, **__: object) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr("model.training.run.train", no_memory)
    monkeypatch.setattr(Detector, "from_checkpoint", no_memory)
    done = run(app, [command, "--data", "x", *(["--out", "y"] if command == "train" else [])])
    assert done.exit_code == 1
    assert "The GPU ran out of memory" in done.stderr
    assert "smaller --batch-size" in done.stderr


def test_evaluating_values_that_are_not_finite_ends_with_a_message(monkeypatch):
    def overflow(*_: object, **__: object) -> None:
        raise NotFiniteError([None], "fp16")

    monkeypatch.setattr(Detector, "from_checkpoint", overflow)
    done = run(app, ["evaluate", "--data", "x"])
    assert done.exit_code == 1
    assert "The network's values in fp16 are not finite for 1 of 1 image(s)" in done.stderr


def _slice(voc20: Path, folder: Path, count: int) -> Path:
    """Make a folder of COCO JSON with the first images of validation, under the name ``test``."""
    subset = load_split(voc20, "validation").subset(range(count))
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "test").symlink_to(voc20 / "images" / "train")
    boxes = [
        {"id": 100 * i + g, "image_id": i, "category_id": int(c), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(n)}
        for i, sample in enumerate(subset.samples)
        for g, ((x1, y1, x2, y2), c, n) in enumerate(
            zip(sample.boxes.tolist(), sample.class_ids, sample.ignore, strict=True)
        )
    ]
    images = [
        {"id": i, "file_name": sample.path.name, "width": sample.width, "height": sample.height}
        for i, sample in enumerate(subset.samples)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(subset.classes) if i]
    (folder / "test.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return folder


@pytest.mark.data
@pytest.mark.slow
def test_figures_of_evaluate_are_reproducible_and_in_bf16_nearly_the_same(voc20: Path, tmp_path: Path) -> None:
    # With fewer images, the rank of a single detection moves an average precision by more than the bound.
    data = _slice(voc20, tmp_path / "few", 150)
    exact, half = tmp_path / "fp32.json", tmp_path / "bf16.json"
    command = ["evaluate", "--data", str(data), "--device", "cpu"]
    done = run(app, [*command, "--precision", "fp32", "--json", str(exact)])
    assert done.exit_code == 0, done.output
    assert "at its default, F1" in done.output
    again = run(app, [*command, "--precision", "fp32", "--against", str(exact)])
    assert again.exit_code == 0, again.output
    assert "ap50 +0.0000" in again.output
    assert run(app, [*command, "--precision", "bf16", "--json", str(half)]).exit_code == 0
    full, reduced = json.loads(exact.read_text()), json.loads(half.read_text())
    assert (full["precision"], reduced["precision"]) == ("fp32", "bf16")
    for name in ("ap50", "ap", "ap75", "ar100"):
        assert reduced[name] == pytest.approx(full[name], abs=0.05)
    exact.write_text(json.dumps(full | {"ap50": full["ap50"] - 0.002}))
    off = run(app, [*command, "--precision", "fp32", "--against", str(exact)])
    assert off.exit_code == 1
    assert "0.1 points" in off.output + (off.stderr or "")
