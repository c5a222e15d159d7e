"""All figures of a detector on one split, as ``frcnn evaluate`` prints them and the model card is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.data import DataError, Dataset, load_dataset
from model.data import split as split_dataset
from model.evaluation.coco import Evaluation, evaluate
from model.evaluation.operating_points import ScoreReport, build_score_report
from model.evaluation.predictions import Prediction
from model.structures import DetectorInfo

HEADLINES = ("ap50", "ap", "ap75", "ar100")


@dataclass(frozen=True)
class EvaluationReport:
    """Figures of a detector, and what they were measured on. data: the folder's name; split: or ``validation``."""

    info: DetectorInfo
    data: str
    split: str
    evaluation: Evaluation
    scores: ScoreReport

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        source = {"weights": self.info.name, "sha256": self.info.sha256, "precision": self.info.precision}
        source |= {"data": self.data, "split": self.split}
        return source | self.evaluation.to_dict() | {"scores": self.scores.to_dict()}

    def differences(self, reference: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
        """Yield (figure, value, reference) for each headline, and then for each class's AP@.5.

        reference: the dictionary of another report. Raises ``DataError`` where that is of other images or classes, or
        is no such dictionary.
        """
        try:
            subject = (self.data, self.split, self.evaluation.images)
            reference_subject = (reference["data"], reference["split"], reference["images"])
            classes = {row["name"]: row["ap50"] for row in reference["classes"]}
            if reference_subject != subject or set(classes) != {row.name for row in self.evaluation.classes}:
                raise DataError(
                    [f"those figures are of {reference_subject} and {len(classes)} classes, these of {subject}"]
                )
            for name in HEADLINES:
                yield name, getattr(self.evaluation, name), float(reference[name])
        except (KeyError, TypeError) as error:
            raise DataError(
                [f"those are no figures of an evaluation: {error} is missing or of another kind"]
            ) from error
        for row in self.evaluation.classes:
            if row.ap50 is not None and classes[row.name] is not None:
                yield f"ap50 of {row.name}", row.ap50, classes[row.name]


def load_split(data: Path, split: str, *, validation: float = 0.05, seed: int = 0) -> Dataset:
    """Read a split of ``data`` without its bad boxes; the split ``validation`` is what ``frcnn train`` holds out.

    validation: the share of ``train`` that is held out, chosen by ``seed``. Raises ``DataError``.
    """
    dataset = load_dataset(data, "train" if split == "validation" else split, on_bad_box="skip")
    return split_dataset(dataset, validation, seed)[1] if split == "validation" else dataset


def build_report(
    info: DetectorInfo, predictions: Sequence[Prediction], dataset: Dataset, data: str, split: str
) -> EvaluationReport:
    """Measure predictions on a data set; raise ``DataError`` for other classes, and ``ValueError`` as ``evaluate``."""
    if dataset.classes != info.classes:
        raise DataError([f"the detector's classes are {info.classes[1:]}, the data's {dataset.classes[1:]}"])
    scores = build_score_report(predictions, dataset, info.score_threshold)
    return EvaluationReport(info, data, split, evaluate(predictions, dataset), scores)
