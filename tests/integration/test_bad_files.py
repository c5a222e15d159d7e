"""Bad data sets and checkpoints are refused by a message that names the file, before training starts."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from model.detector import CheckpointError, Detector
from model.faster_rcnn import FasterRCNN
from model.presets import LITE
from service.cli.main import app

IMAGE = io.BytesIO()
Image.new("RGB", (48, 32), (200, 30, 30)).save(IMAGE, "PNG")
VALID_BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 20, 20]}


def _data(root: Path, image: bytes, annotations: list[dict[str, Any]], categories: int = 1) -> Path:
    (root / "images" / "train").mkdir(parents=True)
    (root / "images" / "train" / "image.png").write_bytes(image)
    labels = {
        "images": [{"id": 1, "file_name": "image.png", "width": 48, "height": 32}],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class{i}"} for i in range(1, categories + 1)],
    }
    (root / "train.json").write_text(json.dumps(labels))
    return root


def _refused(data: Path, tmp_path: Path) -> str:
    out = tmp_path / "run"
    train = ["train", "--data", str(data), "--out", str(out), "--start", "nothing", "--validation", "0"]
    done = CliRunner().invoke(app, train, env={"COLUMNS": "1000"})  # wide, so that no name is broken in two
    assert done.exit_code == 1, done.output
    assert not out.exists(), "a run was started"
    return done.output


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ({"bbox": [2, 2, 0, 20]}, "has no area"),
        ({"bbox": [float("nan"), 2, 9, 9]}, "is not finite"),
        ({"bbox": [40, 2, 20, 20]}, "leaves its image"),
        ({"category_id": 9}, "no category has the id 9"),
    ],
)
def test_a_bad_box_is_named_with_its_file(tmp_path, box, message):
    output = _refused(_data(tmp_path / "data", IMAGE.getvalue(), [VALID_BOX | {"id": 77} | box]), tmp_path)
    assert "train.json: box 77 of image.png: " in output
    assert message in output


def test_an_empty_image_is_named(tmp_path):
    assert "image.png: not an image" in _refused(_data(tmp_path / "data", b"", [VALID_BOX]), tmp_path)


def test_a_truncated_image_is_named(tmp_path):
    """Its header is intact, so that only decoding finds it."""
    noise = io.BytesIO()
    Image.effect_noise((48, 32), 90).convert("RGB").save(noise, "JPEG")
    half = noise.getvalue()[: len(noise.getvalue()) // 2]
    assert "image.png: the image cannot be decoded" in _refused(_data(tmp_path / "data", half, [VALID_BOX]), tmp_path)


def test_a_missing_image_is_named(tmp_path):
    data = _data(tmp_path / "data", IMAGE.getvalue(), [VALID_BOX])
    (data / "images" / "train" / "image.png").unlink()
    assert "image.png: missing" in _refused(data, tmp_path)


def test_a_class_without_boxes_is_named(tmp_path):
    output = _refused(_data(tmp_path / "data", IMAGE.getvalue(), [VALID_BOX], categories=2), tmp_path)
    assert "no box of class 'class2' in train" in output


def test_an_unreadable_json_is_named(tmp_path):
    data = _data(tmp_path / "data", IMAGE.getvalue(), [VALID_BOX])
    (data / "train.json").write_text('{"images": [')
    assert "train.json: not a COCO JSON" in _refused(data, tmp_path)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def _state() -> dict[str, torch.Tensor]:
    return FasterRCNN(LITE.with_classes(3)).state_dict()


def _write(path: Path, state: Any) -> Path:
    torch.save(state, path)
    path.with_name("w.classes.txt").write_text("cat\ndog\n")
    return path


@pytest.mark.parametrize("case", ["truncated", "bomb", "architecture", "shapes"])
def test_a_bad_checkpoint_is_refused_with_its_cause(tmp_path, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    if case == "truncated":
        _write(path, _state())
        path.write_bytes(path.read_bytes()[:5000])
        message = r"w\.pth"
    elif case == "bomb":
        _write(path, {})
        path.write_bytes(pickle.dumps({"model": _Bomb()}))
        message = r"w\.pth"
    elif case == "architecture":
        _write(path, {"layer.weight": torch.zeros(2, 2)})
        message = "not a Faster R-CNN of any preset"
    else:
        state = _state()
        state["rpn.head.cls_logits.weight"] = torch.zeros(1, 1, 1, 1)
        _write(path, state)
        message = r"rpn\.head\.cls_logits\.weight \(1, 1, 1, 1\)"
    with pytest.raises(CheckpointError, match=message):
        Detector.from_checkpoint(path, preset="LITE")
    assert not (tmp_path / "executed").exists()
