"""``frcnn detect`` on this machine."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from model.detector import Detector, NotFiniteError
from model.structures import Detections
from service.cli.main import app
from tests.service.conftest import CLASSES, FaultyDetector
from tests.service.memory_errors import OUT_OF_MEMORY

run = CliRunner().invoke


pytestmark = pytest.mark.usefixtures("random_weights")


def test_detect_prints_a_table(cat_file):
    done = run(app, ["detect", str(cat_file), "--score-threshold", "0.01"])
    assert done.exit_code == 0, done.output
    assert "label" in done.output
    assert "found" in done.output


def test_detect_prints_one_json_object_per_image(cat_file):
    done = run(
        app, ["detect", str(cat_file), str(cat_file), "--json", "--score-threshold", "0.01", "--max-detections", "4"]
    )
    first, second = (json.loads(line) for line in done.output.splitlines())
    assert first["image"] == {"width": 451, "height": 300}
    assert len(first["boxes"]) == 4
    assert first == second


def test_detect_writes_drawings(cat_file, tmp_path):
    assert run(app, ["detect", str(cat_file), "--out", str(tmp_path / "drawn.png")]).exit_code == 0
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == (451, 300)
    second = cat_file.with_name("other.jpg")
    second.write_bytes(cat_file.read_bytes())
    assert run(app, ["detect", str(cat_file), str(second), "--out", str(tmp_path / "all")]).exit_code == 0
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"cat.png", "other.png"}


def test_detect_continues_after_an_image_that_cannot_be_read(cat_file, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(cat_file.read_bytes()[:500])
    done = run(app, ["detect", str(broken), str(tmp_path / "missing.jpg"), str(cat_file), "--json"])
    assert done.exit_code == 1
    assert "broken.jpg: The bytes begin like a JPEG image" in done.stderr
    assert "missing.jpg" in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_detect_without_memory_says_what_to_do(monkeypatch, tmp_path, cat_jpeg):
    cat_file = tmp_path / "cat.jpg"
    cat_file.write_bytes(cat_jpeg)

    def no_memory(*_: object) -> None:
        raise OUT_OF_MEMORY

    monkeypatch.setattr("service.inference.detector.load_detector", no_memory)
    done = run(app, ["detect", str(cat_file)])
    assert done.exit_code == 1
    assert "The GPU ran out of memory while the weights were loaded" in done.stderr
    detector = Detector.random("LITE", classes=CLASSES)
    monkeypatch.setattr(detector, "detect", no_memory)
    monkeypatch.setattr("service.inference.detector.load_detector", lambda _: detector)
    done = run(app, ["detect", str(cat_file)])
    assert done.exit_code == 1
    assert "cat.jpg: The GPU ran out of memory on this image" in done.stderr


def test_detect_continues_after_an_image_whose_values_are_not_finite(monkeypatch, tmp_path, cat_jpeg):
    for name in ("bad.jpg", "good.jpg"):
        (tmp_path / name).write_bytes(cat_jpeg)
    detector, outcomes = Detector.random("LITE", classes=CLASSES), iter(["bad", "good"])

    def overflow(images: object, options: object) -> list[Detections]:
        if next(outcomes) == "bad":
            raise NotFiniteError([None], "fp16")
        return [FaultyDetector._detections((300, 451), 1)]

    monkeypatch.setattr(detector, "detect", overflow)
    monkeypatch.setattr("service.inference.detector.load_detector", lambda _: detector)
    done = run(app, ["detect", "--json", str(tmp_path / "bad.jpg"), str(tmp_path / "good.jpg")])
    assert done.exit_code == 1
    assert "bad.jpg: The network's values in fp16 are not finite" in done.stderr
    assert "FRCNN_PRECISION=bf16 or fp32" in done.stderr
    assert '"labels":["cat"]' in done.stdout.replace(" ", "")


def test_detect_through_a_service_takes_no_weights_and_no_device(cat_file):
    for option in (["--weights", "lite-voc20"], ["--device", "cpu"]):
        done = run(app, ["detect", str(cat_file), "--url", "http://127.0.0.1:9", *option])
        assert done.exit_code == 2
        assert "leave --weights and --device out" in " ".join(done.stderr.split())
