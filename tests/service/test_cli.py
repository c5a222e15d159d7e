"""The command line."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from model.detector import Detector
from service import app as service_app
from service.cli.main import app
from service.settings import Settings

run = CliRunner().invoke


@pytest.fixture
def cat(tmp_path: Path, cat_jpeg: bytes) -> Path:
    path = tmp_path / "cat.jpg"
    path.write_bytes(cat_jpeg)
    return path


@pytest.fixture(autouse=True)
def _random_weights(monkeypatch):
    """No checkpoint is needed to test the command line around it."""
    classes = ("__background__", "cat", "dog", "person")
    monkeypatch.setattr(service_app, "load_detector", lambda _: Detector.random("LITE", seed=0, classes=classes))


def test_detect_prints_a_table(cat):
    done = run(app, ["detect", str(cat), "--score-threshold", "0.01"])
    assert done.exit_code == 0, done.output
    assert "label" in done.output
    assert "found" in done.output


def test_detect_prints_json_a_line_a_picture(cat):
    done = run(app, ["detect", str(cat), str(cat), "--json", "--score-threshold", "0.01", "--max-detections", "4"])
    first, second = (json.loads(line) for line in done.output.splitlines())
    assert first["image"] == {"width": 451, "height": 300}
    assert len(first["boxes"]) == 4
    assert first == second


def test_detect_draws(cat, tmp_path):
    assert run(app, ["detect", str(cat), "--out", str(tmp_path / "drawn.png")]).exit_code == 0
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == (451, 300)
    other = cat.with_name("other.jpg")
    other.write_bytes(cat.read_bytes())
    assert run(app, ["detect", str(cat), str(other), "--out", str(tmp_path / "all")]).exit_code == 0
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"cat.png", "other.png"}


def test_detect_goes_on_after_a_picture_that_cannot_be_read(cat, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(cat.read_bytes()[:500])
    done = run(app, ["detect", str(broken), str(tmp_path / "missing.jpg"), str(cat), "--json"])
    assert done.exit_code == 1
    assert "broken.jpg: The bytes begin like a JPEG picture" in done.stderr
    assert "missing.jpg" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_serve_refuses_a_wrong_setting_with_its_range():
    done = run(app, ["serve", "--max-batch", "0"])
    assert done.exit_code == 2
    assert "FRCNN_MAX_BATCH is 0; it must be a whole number from 1 to 256" in " ".join(done.stderr.split())


def test_serve_has_an_option_for_every_setting():
    help = run(app, ["serve", "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in help


def test_weights_are_listed():
    done = run(app, ["weights", "list"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "coco" in done.output


def test_weights_without_a_name_in_the_manifest_are_not_fetched():
    done = run(app, ["weights", "fetch", "no-such-weights"])
    assert done.exit_code == 1
    assert "No checkpoint 'no-such-weights' to fetch" in done.stderr


def test_weights_that_are_not_in_the_manifest_are_named():
    done = run(app, ["weights", "verify", "no-such-weights"])
    assert done.exit_code == 1
    assert "No checkpoint is named no-such-weights" in done.stderr


def test_calibrate_makes_what_int8_needs(cat, saved):
    assert run(app, ["calibrate", str(cat.parent), "--weights", str(saved)]).exit_code == 0
    assert json.loads(saved.with_suffix(".ranges.json").read_text())["pictures"] == 1
    detector = Detector.from_checkpoint(saved, precision="int8")
    assert detector.info.precision == "int8"


def test_calibrate_looks_at_so_many_pictures_and_no_more(cat, saved):
    for number in range(5):
        cat.with_name(f"{number}.jpg").write_bytes(cat.read_bytes())
    assert run(app, ["calibrate", str(cat.parent), "--weights", str(saved), "--count", "3"]).exit_code == 0
    assert json.loads(saved.with_suffix(".ranges.json").read_text())["pictures"] == 3


def test_calibrate_says_what_is_wrong_with_its_pictures(cat, saved, tmp_path):
    command = ["calibrate", "--weights", str(saved)]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(cat.read_bytes()[:500])
    done = run(app, [*command, str(broken)])
    assert done.exit_code == 1
    assert "broken.jpg" in done.output.replace("\n", "")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run(app, [*command, str(empty)])
    assert done.exit_code == 1
    assert "no images" in done.output
    assert not saved.with_suffix(".ranges.json").exists()
