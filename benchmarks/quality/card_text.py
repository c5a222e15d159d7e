"""The generated parts of the model card, weights/lite-voc20.md, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality import unknown
from model.checkpoint import sha256
from model.detector import Detector
from model.evaluation.operating_points import MIN_SCORE
from model.evaluation.predictions import WHOLE_CURVE
from model.evaluation.report import EvaluationReport

PRECISIONS = ("fp32", "bf16", "int8")
PARTS = ("about", "figures", "precisions", "classes", "sizes", "scores", "unknown", "failures", "speed")
_FAULTS = {
    "nothing": "where nothing is labelled",
    "other class": "on a box of another class",
    "second": "second boxes on one object",
    "misplaced": "too far off a box of their class",
}


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; floats have three digits, None is a dash."""

    def cell(value: object) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def figure_parts(all_figures: dict[tuple[str, str], EvaluationReport]) -> dict[str, str]:
    """Return the parts about average precision. all_figures: by (part of the data, precision)."""
    test, validation = (all_figures[part, "fp32"].evaluation for part in ("test", "validation"))
    names = {"ap50": "AP@.5", "ap": "AP@[.5:.95]", "ap75": "AP@.75", "ar100": "AR@100"}
    rows = [(f"**{name}**", getattr(validation, key), getattr(test, key)) for key, name in names.items()]
    head = (
        f"In fp32, of all detections above {WHOLE_CURVE.score_threshold}, {WHOLE_CURVE.max_detections} an image at "
        f"most, by COCO's rules; difficult objects count neither way. Validation: {validation.images} images, "
        f"{validation.boxes} boxes that count and {validation.ignored} difficult ones; test: {test.images}, "
        f"{test.boxes} and {test.ignored}."
    )
    by_class = [
        (row.name, row.boxes, row.ap50, row.ap, half.ap50)
        for row, half in zip(test.classes, all_figures["test", "bf16"].evaluation.classes, strict=True)
    ]
    by_size = [
        (
            size.name,
            f"{size.low**0.5:.0f} to {size.high**0.5:.0f}" if size.high < 1e9 else f"above {size.low**0.5:.0f}",
            size.boxes,
            size.ap50,
            size.ap,
        )
        for size in test.sizes
    ]
    precisions = []
    for part in ("validation", "test"):
        exact = all_figures[part, "fp32"].evaluation
        for precision in PRECISIONS:
            own = all_figures[part, precision].evaluation
            values = [getattr(own, key) for key in names]
            off = max(abs(getattr(own, key) - getattr(exact, key)) for key in names)
            precisions.append((part, precision, *values, "" if precision == "fp32" else f"{100 * off:.2f}"))
    return {
        "figures": f"{head}\n\n{table(('measure', 'validation', 'test'), rows)}",
        "classes": table(("class (test)", "boxes", "AP@.5", "AP", "AP@.5 in bf16"), by_class),
        "sizes": table(("boxes (test)", "square root of the area, px", "boxes", "AP@.5", "AP"), by_size),
        "precisions": table(("part", "precision", *names.values(), "furthest from fp32, points"), precisions),
    }


def scores_part(
    validation: EvaluationReport, test: EvaluationReport, threshold: float, variants: dict[str, Any], images: str
) -> str:
    """Return the part about score threshold, calibration error and temperature scaling."""
    rows = []
    for name, own in (("validation", validation), ("test", test)):
        served = own.scores.served
        assert served is not None
        rows.append((name, served.precision, served.recall, served.f1, served.false_per_image))
        rows[-1] += (own.scores.best.f1, f"{own.scores.best.threshold:.2f}", own.scores.calibration_error)
    headings = ("part", "precision", "recall", "F1", "false an image", "best F1", "at score", "calibration error")
    text = [
        f"The default score threshold is {threshold:.2f}: the best F1 over all detections of validation is at "
        f"{validation.scores.best.threshold:.3f} (IoU 0.5). What it gives, and beside it the best that any threshold "
        "would give on those images:",
        table(headings, rows),
        f"![precision against recall, F1 by threshold, and reliability, on test]({images}/lite-scores.svg)",
        "The calibration error is the expected calibration error: the mean gap between score and share that is right, "
        f"over ten bins, of all detections above {MIN_SCORE} (test: {test.scores.detections}).",
        "**Calibrated or not.** What a correction of the last class layer, fitted on validation for the least log loss "
        "of *is this detection right?*, does to the scores: a temperature divides all logits, a background offset is "
        "added to the background's. Served: the detections above the default threshold, as many in every row.",
        table(
            ("weights", "calibration error, validation", "test", "served on test: mean score", "of them right"),
            [
                (name, row["validation"], row["test"], row["mean_score"], row["precision"])
                for name, row in variants.items()
            ],
        ),
    ]
    return "\n\n".join(text)


def unknown_part(measured: dict[str, Any]) -> str:
    """Return the part about false detections on images without any of the classes."""
    rows = [
        (kind, row["images"], f"{row['share']:.0%}", f"{row['per_image']:.2f}")
        for kind, row in measured["kinds"].items()
    ]
    highest = "; ".join(f"{row['image']}: {row['class']} {row['score']:.2f}" for row in measured["highest"])
    return "\n\n".join(
        (
            "`python -m benchmarks.quality.unknown` draws images without any of the twenty classes, the same every "
            "time, and takes photographs from scikit-image (CC0 or public domain: "
            f"{', '.join(map(_stem, unknown.PHOTOGRAPHS))}). Above the default threshold of "
            f"{measured['threshold']:.2f}:",
            table(("kind", "images", "with a false detection", "false detections an image"), rows),
            f"The ten that score highest, whatever the threshold: {highest}.",
        )
    )


def failures_part(counts: dict[str, Any], threshold: float) -> str:
    """Return the part about what goes wrong on test."""
    false = ", ".join(f"{count} {_FAULTS[fault]}" for fault, count in counts["false"].items())
    missed = ", ".join(f"{count} `{stage}`" for stage, count in counts["missed"].items())
    return "\n".join(
        (
            f"On test, above {threshold:.2f}; an image is called by its file in VOC, and a miss described in the words "
            "of `POST /explain` (a stage of its list, and its sentence).",
            "",
            f"False detections: {false}. Misses by the stage at which they were lost: {missed}.",
            "",
            "The surest false detections (what is not labelled may be there all the same):",
            "",
            *(f"- {words}" for words in counts["surest_false"]),
            "",
            "The largest misses:",
            "",
            *(f"- {words}" for words in counts["largest_missed"]),
        )
    )


def speed_part(speed: dict[str, Any]) -> str:
    """Return the part about speed."""
    times = "; ".join(
        f"{name} {row['median_ms']:.1f} ms ({row['p25_ms']:.1f} to {row['p75_ms']:.1f})"
        for name, row in speed["precisions"].items()
    )
    threads = "1 thread" if speed["threads"] == 1 else f"{speed['threads']} threads"
    busy = (
        " Other work shared it, so that these times say little of it; what they are to one another says more."
        if speed["load"] > 1
        else ""
    )
    rounding = (
        ""
        if speed["multiplies_bf16"]
        else " This processor has no products of bf16, which is fp32 with rounding here, and slower."
    )
    return (
        f"Median (quartiles) of `detect` on one image, the precisions taking turns over {speed['images']} images "
        f"of validation: {times}. {speed['processor']}, {threads}, torch {speed['torch']}, {speed['date']}; the "
        f"machine's load was {speed['load']:.1f} when it began.{busy}{rounding}"
    )


def about_part(detector: Detector) -> str:
    """Return the part about the file."""
    size = detector.config.transform.max_size
    return (
        f"Preset `{detector.config.name}`, {detector.info.parameters / 1e6:.1f} M parameters, images at a long side "
        f"of {size} pixels; {detector.checkpoint.path.stat().st_size / 1e6:.1f} MB of float16, SHA-256 "
        f"`{sha256(detector.checkpoint.path)}`."
    )


def _stem(name: str) -> str:
    return Path(name).stem
