"""Every figure of a detector on one split: what ``frcnn evaluate`` prints, and what the model card is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.evaluation.coco import Evaluation, Prediction, evaluate
from model.evaluation.operating_points import ScoreReport, report
from model.structures import DetectorInfo
from model.training.data import DataError, Dataset, load_dataset, split

HEADLINES = ("ap50", "ap", "ap75", "ar100")


@dataclass(frozen=True)
class Figures:
    """What was measured, of what, and how. data: the folder's name; part: its split, or ``validation``."""

    info: DetectorInfo
    data: str
    part: str
    evaluation: Evaluation
    scores: ScoreReport

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        about = {"weights": self.info.name, "sha256": self.info.sha256, "precision": self.info.precision}
        about |= {"data": self.data, "split": self.part}
        return about | self.evaluation.to_dict() | {"scores": self.scores.to_dict()}

    def differences(self, written: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
        """(figure, here, there) for each headline, and then each class's AP@.5, against a dictionary written before.

        Raises ``DataError`` where that is of other pictures or other classes, or no such dictionary.
        """
        try:
            theirs = (written["data"], written["split"], written["pictures"])
            classes = {row["name"]: row["ap50"] for row in written["classes"]}
            mine = (self.data, self.part, self.evaluation.pictures)
            if theirs != mine or set(classes) != {row.name for row in self.evaluation.classes}:
                raise DataError([f"those figures are of {theirs} and {len(classes)} classes, these of {mine}"])
            for name in HEADLINES:
                yield name, getattr(self.evaluation, name), float(written[name])
        except (KeyError, TypeError) as error:
            raise DataError(
                [f"those are no figures of an evaluation: {error} is missing or of another kind"]
            ) from error
        for row in self.evaluation.classes:
            if row.ap50 is not None and classes[row.name] is not None:
                yield f"ap50 of {row.name}", row.ap50, classes[row.name]


def load_part(data: Path, part: str, *, validation: float = 0.05, seed: int = 0) -> Dataset:
    """A split of ``data``; ``validation`` cuts ``train`` as ``frcnn train`` does. Bad boxes are left out."""
    dataset = load_dataset(data, "train" if part == "validation" else part, on_bad_box="skip")
    return split(dataset, validation, seed)[1] if part == "validation" else dataset


def figures(info: DetectorInfo, predictions: Sequence[Prediction], dataset: Dataset, data: str, part: str) -> Figures:
    """Measure what a detector found. Raises ``DataError`` where its classes are not the data's, and ``ValueError``."""
    if dataset.classes != info.classes:
        raise DataError([f"the detector's classes are {info.classes[1:]}, the data's {dataset.classes[1:]}"])
    scores = report(predictions, dataset, info.score_threshold)
    return Figures(info, data, part, evaluate(predictions, dataset), scores)
