"""The report of an evaluation becomes JSON, and is compared with one of the same images and classes only."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.config import BACKGROUND_NAME
from model.data import DataError, Dataset, Sample, load_dataset, split
from model.detector import Detector
from model.evaluation.report import HEADLINES, EvaluationReport, build_report, load_split

CLASSES = (BACKGROUND_NAME, "cat")


def _report(classes: tuple[str, ...] = CLASSES) -> EvaluationReport:
    sample = Sample(
        path=Path("a.jpg"),
        image_id="a",
        width=10,
        height=10,
        boxes=np.array([[1, 1, 9, 9]], np.float32),
        class_ids=np.array([1]),
        ignore=np.array([False]),
        areas=np.array([64], np.float32),
    )
    detector = Detector.random("LITE", classes=CLASSES, device="cpu", precision="fp32")
    predictions = [("a", sample.boxes, [0.9], [1])]
    return build_report(detector.info, predictions, Dataset((sample,), classes), "folder", "test")


def test_a_report_does_not_differ_from_itself() -> None:
    report = _report()
    reference = json.loads(json.dumps(report.to_dict()))
    assert (reference["data"], reference["split"], reference["weights"]) == ("folder", "test", "random")
    differences = {name: value - expected for name, value, expected in report.differences(reference)}
    assert differences == dict.fromkeys((*HEADLINES, "ap50 of cat"), 0)


def test_figures_of_other_images_are_refused() -> None:
    report = _report()
    reference = report.to_dict()
    with pytest.raises(DataError, match="those figures are of"):
        list(report.differences(reference | {"images": 2}))
    with pytest.raises(DataError, match="those figures are of"):
        list(report.differences(reference | {"classes": []}))
    with pytest.raises(DataError, match="no figures of an evaluation"):
        list(report.differences({"data": "folder"}))


def test_classes_must_be_the_detectors() -> None:
    with pytest.raises(DataError, match=r"the detector's classes are \('cat',\), the data's \('dog',\)"):
        _report((BACKGROUND_NAME, "dog"))


def test_the_validation_split_is_what_training_holds_out(shapes_folder: Path) -> None:
    train = load_dataset(shapes_folder, "train")
    held_out = load_split(shapes_folder, "validation", validation=0.25, seed=3)
    assert [s.image_id for s in held_out.samples] == [s.image_id for s in split(train, 0.25, 3)[1].samples]
    assert len(load_split(shapes_folder, "test")) == 8
