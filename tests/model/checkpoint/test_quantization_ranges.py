"""The file of quantization ranges is read back, and refused where it is missing, damaged or of other weights."""

import json
from pathlib import Path

import pytest

from model.checkpoint import (
    CheckpointError,
    quantization_ranges_path,
    read_quantization_ranges,
    resolve,
    save_quantization_ranges,
)
from model.detector import Detector

RANGES = {"backbone.body.stem.conv": (-1.5, 2.0), "rpn.head.cls_logits": (0.0, 6.0)}


def test_ranges_are_read_back(saved: Path) -> None:
    path = save_quantization_ranges(resolve(saved), RANGES, images=3)
    assert path == quantization_ranges_path(resolve(saved)) == saved.with_name("mine.ranges.json")
    assert read_quantization_ranges(resolve(saved)) == RANGES
    assert json.loads(path.read_text())["images"] == 3


def test_a_missing_file_is_refused_with_the_command_that_makes_it(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"frcnn calibrate \w+ --weights {saved}"):
        Detector.from_checkpoint(saved, precision="int8")


def test_ranges_of_other_weights_are_refused(saved: Path) -> None:
    path = save_quantization_ranges(resolve(saved), RANGES, images=3)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="of other weights"):
        read_quantization_ranges(resolve(saved))


@pytest.mark.parametrize("ranges", [{"conv": [2, 1]}, {"conv": [1]}, {"conv": [0, float("inf")]}, 3], ids=str)
def test_ranges_that_are_no_intervals_are_refused(saved: Path, ranges: object) -> None:
    path = save_quantization_ranges(resolve(saved), RANGES, images=3)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ranges": ranges}))
    with pytest.raises(CheckpointError, match="calibrate"):
        read_quantization_ranges(resolve(saved))


def test_a_file_that_is_not_json_is_refused(saved: Path) -> None:
    quantization_ranges_path(resolve(saved)).write_text("{")
    with pytest.raises(CheckpointError, match="holds no ranges"):
        read_quantization_ranges(resolve(saved))


def test_a_detector_needs_the_range_of_every_layer(saved: Path) -> None:
    save_quantization_ranges(resolve(saved), RANGES, images=3)
    with pytest.raises(ValueError, match="No range is known"):
        Detector.from_checkpoint(saved, precision="int8")
