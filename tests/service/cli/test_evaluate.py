"""``frcnn evaluate``."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.evaluation.report import load_split
from service.cli.main import app


def _slice(voc20: Path, folder: Path, count: int) -> Path:
    """A folder of COCO json with the first images of validation, under the name ``test``."""
    part = load_split(voc20, "validation").subset(range(count))
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "test").symlink_to(voc20 / "images" / "train")
    boxes = [
        {"id": 100 * i + g, "image_id": i, "category_id": int(c), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(n)}
        for i, s in enumerate(part.samples)
        for g, ((x1, y1, x2, y2), c, n) in enumerate(zip(s.boxes.tolist(), s.class_ids, s.ignore, strict=True))
    ]
    images = [
        {"id": i, "file_name": s.path.name, "width": s.width, "height": s.height} for i, s in enumerate(part.samples)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(part.classes) if i]
    (folder / "test.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return folder


@pytest.mark.data
@pytest.mark.slow
def test_evaluate_agrees_with_itself_and_nearly_in_bf16(voc20: Path, tmp_path: Path) -> None:
    # With fewer images, the rank of a single detection moves an average precision by more than the bound.
    data, run = _slice(voc20, tmp_path / "few", 150), CliRunner().invoke
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
