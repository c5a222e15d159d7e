"""The model card's figures, all of them, from a checkpoint: one command.

    .venv/bin/python -m benchmarks.card --data ../shared/data/voc20 --cache /somewhere/else

measures what ``--weights`` holds on validation and on test, in fp32, bf16 and int8, and on pictures without its
classes; writes weights/lite-voc20.md between its markers, docs/images/lite-scores.svg, and into benchmarks/results/ a
lite-voc20-PART-PRECISION.json for each (test in fp32 is lite-voc20-test.json), as ``frcnn evaluate --json`` does, and
lite-voc20-card.json with the rest. Before that, on validation alone:

    --sweep                 what canvas and NMS threshold would give, and which score threshold is best
    --fold OUT.safetensors  the same weights with their last class layer corrected, so that scores are honest: a
                            temperature and an offset for the background, fitted on validation
    --draw OUT.png          ten test pictures with their boxes, to look at; outside the repository

--cache keeps what was found, by the weights' hash, so that a second run only writes. Give it a new folder after a
change to the detector's code.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pickle
import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks import curves, unknown
from benchmarks.failures import Seen, summary, watch
from model.checkpoint import load_into, merged, read_state, resolve, save, sha256
from model.detector import DetectOptions, Detector
from model.evaluation.coco import WHOLE_CURVE, Prediction, look
from model.evaluation.operating_points import (
    HEARD,
    IGNORED,
    Calibration,
    Point,
    calibrated,
    calibration_error,
    fit_calibration,
    judge,
    match,
    point,
    recalibrated,
    report,
)
from model.faster_rcnn import FasterRCNN
from model.runtime.malloc import configure_malloc
from model.runtime.precision import multiplies_bf16
from model.training.figures import Figures, figures, load_part
from model.training.samples import Dataset

ROOT = Path(__file__).resolve().parent.parent
NAME = "lite-voc20"
CANVASES = (384, 416, 448, 480, 512)
NMS = (0.4, 0.45, 0.5, 0.55, 0.6)
PRECISIONS = ("fp32", "bf16", "int8")
FIRST = (384, (300, 150))  # the first checkpoint's canvas, candidates a level, and proposals
PREDICTOR = "roi_heads.box_predictor.cls_score"
PARTS = ("about", "figures", "precisions", "classes", "sizes", "scores", "unknown", "failures", "speed")

T = TypeVar("T")


def open_detector(
    weights: str,
    precision: str = "fp32",
    canvas: int | None = None,
    limits: Sequence[int] | None = None,
    whole: bool = False,
) -> Detector:
    """The checkpoint's detector; canvas: another short and long side than the preset's.

    limits: other numbers than the preset's of candidates a level before NMS, and of proposals after it. whole: with
    fc6 in one layer, which answers the same.
    """
    detector = Detector.from_checkpoint(weights, precision=precision, device="cpu")
    if canvas is None and limits is None and not whole:
        return detector
    config, state = detector.config, read_state(detector.checkpoint)
    if whole and config.roi_head.fc6_rank is not None:
        config, state = replace(config, roi_head=replace(config.roi_head, fc6_rank=None)), merged(state)
    if canvas is not None:
        config = replace(config, transform=replace(config.transform, min_size=canvas, max_size=canvas))
    if limits is not None:
        config = replace(config, rpn=replace(config.rpn, pre_nms=limits[0], post_nms=limits[1]))
    model = FasterRCNN(config)
    load_into(model, state)
    return Detector(model, detector.checkpoint, precision=precision, device="cpu")


def judged(seen: Seen, dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Class scores [K, C], classes [K] and verdicts [K] of the detections that ``judge`` judges."""
    samples = {sample.image_id: sample for sample in dataset.samples}
    rows, class_ids, right = [], [], []
    for (image_id, boxes, scores, classes), distributions in zip(seen.predictions, seen.distributions, strict=True):
        matches = match(boxes, scores, classes, samples[image_id])
        counted = matches != IGNORED
        rows.append(distributions[counted])
        class_ids.append(np.asarray(classes)[counted])
        right.append(matches[counted] >= 0)
    return np.concatenate(rows), np.concatenate(class_ids), np.concatenate(right)


def wanted(dataset: Dataset) -> int:
    """How many boxes count."""
    return sum(int((~sample.ignore).sum()) for sample in dataset.samples)


def macro_threshold(predictions: Iterable[Prediction], dataset: Dataset) -> Point:
    """The threshold, of hundredths, at which the mean of the classes' F1 is best, and what it gives over all."""
    predictions = list(predictions)
    grid = np.arange(0.01, 1.0, 0.01)
    lines = []
    for class_id in range(1, len(dataset.classes)):
        boxes = sum(int(((s.class_ids == class_id) & ~s.ignore).sum()) for s in dataset.samples)
        if not boxes:
            continue
        own = [(i, b[c == class_id], s[c == class_id], c[c == class_id]) for i, b, s, c in map(_arrays, predictions)]
        scores, right = judge(own, dataset)
        lines.append([point(scores, right, boxes, 1, float(t)).f1 for t in grid])
    best = float(grid[np.mean(lines, axis=0).argmax()])
    return point(*judge(predictions, dataset), wanted(dataset), len(dataset), best)


# ------------------------------------------------------------------------------------------------ what is written


def fill(text: str, parts: dict[str, str]) -> str:
    """``text`` with each part between its ``<!-- card: NAME -->`` and ``<!-- end -->``, and nothing else changed.

    Raises ``ValueError`` for a part whose markers are missing or there twice, and for markers of no part.
    """
    named = re.findall(r"<!-- card: (\S+) -->", text)
    if sorted(named) != sorted(parts):
        raise ValueError(f"the card has markers for {sorted(named)}, and these parts were made: {sorted(parts)}")
    for name, body in parts.items():
        mark = re.escape(f"<!-- card: {name} -->")
        section = re.compile(rf"({mark}\n)(?:(?!<!-- card: ).)*?(<!-- end -->)", re.DOTALL)
        text, count = section.subn(lambda found, body=body: f"{found[1]}{body.strip()}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"the card's part {name!r} has no end marker")
    return text


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A markdown table; floats with three digits, None as a dash."""

    def cell(value: object) -> str:
        return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def figure_parts(all_figures: dict[tuple[str, str], Figures]) -> dict[str, str]:
    """The parts of the card that tell of average precision. all_figures: by (part, precision)."""
    test, validation = (all_figures[part, "fp32"].evaluation for part in ("test", "validation"))
    names = {"ap50": "AP@.5", "ap": "AP@[.5:.95]", "ap75": "AP@.75", "ar100": "AR@100"}
    rows = [(f"**{name}**", getattr(validation, key), getattr(test, key)) for key, name in names.items()]
    head = (
        f"In fp32, of all detections above {WHOLE_CURVE.score_threshold}, {WHOLE_CURVE.max_detections} a picture at "
        f"most, by COCO's rules; difficult objects count neither way. Validation: {validation.pictures} pictures, "
        f"{validation.boxes} boxes that count and {validation.ignored} difficult ones; test: {test.pictures}, "
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


def scores_part(validation: Figures, test: Figures, threshold: float, variants: dict[str, Any], images: str) -> str:
    """Threshold, calibration and temperature, in words."""
    rows = []
    for name, own in (("validation", validation), ("test", test)):
        served = own.scores.served
        assert served is not None
        rows.append((name, served.precision, served.recall, served.f1, served.false_per_picture))
        rows[-1] += (own.scores.best.f1, f"{own.scores.best.threshold:.2f}", own.scores.calibration_error)
    headings = ("part", "precision", "recall", "F1", "false a picture", "best F1", "at score", "calibration error")
    text = [
        f"The default score threshold is {threshold:.2f}: the best F1 over all detections of validation is at "
        f"{validation.scores.best.threshold:.3f} (IoU 0.5). What it gives, and beside it the best that any threshold "
        "would give on those pictures:",
        table(headings, rows),
        f"![precision against recall, F1 by threshold, and reliability, on test]({images}/lite-scores.svg)",
        "The calibration error is the expected calibration error: the mean gap between score and share that is right, "
        f"over ten bins, of all detections above {HEARD} (test: {test.scores.detections}).",
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
    """False detections where there is nothing to detect."""
    rows = [
        (kind, row["pictures"], f"{row['share']:.0%}", f"{row['a_picture']:.2f}")
        for kind, row in measured["kinds"].items()
    ]
    highest = "; ".join(f"{one['picture']}: {one['class']} {one['score']:.2f}" for one in measured["highest"])
    return "\n\n".join(
        (
            "`python -m benchmarks.unknown` draws pictures without any of the twenty classes, the same every time, and "
            f"takes photographs from scikit-image (CC0 or public domain: {', '.join(map(_stem, unknown.PHOTOGRAPHS))})."
            f" Above the default threshold of {measured['threshold']:.2f}:",
            table(("kind", "pictures", "with a false detection", "false detections a picture"), rows),
            f"The ten that score highest, whatever the threshold: {highest}.",
        )
    )


def failures_part(told: dict[str, Any], threshold: float) -> str:
    """What goes wrong on test, by picture."""
    false = ", ".join(f"{count} {_FAULTS[fault]}" for fault, count in told["false"].items())
    missed = ", ".join(f"{count} `{stage}`" for stage, count in told["missed"].items())
    return "\n".join(
        (
            f"On test, above {threshold:.2f}; a picture is called by its file in VOC, and a miss told in the words of "
            "`POST /explain` (a stage of its list, and its sentence).",
            "",
            f"False detections: {false}. Misses by the stage at which they were lost: {missed}.",
            "",
            "The surest false detections (what is not labelled may be there all the same):",
            "",
            *(f"- {words}" for words in told["surest_false"]),
            "",
            "The largest misses:",
            "",
            *(f"- {words}" for words in told["largest_missed"]),
        )
    )


_FAULTS = {
    "nothing": "where nothing is labelled",
    "other class": "on a box of another class",
    "second": "second boxes on one thing",
    "misplaced": "too far off a box of their class",
}


def speed_part(speed: dict[str, Any]) -> str:
    """One line."""
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
        f"Median (quartiles) of `detect` on one picture, the precisions taking turns over {speed['pictures']} pictures "
        f"of validation: {times}. {speed['processor']}, {threads}, torch {speed['torch']}, {speed['date']}; the "
        f"machine's load was {speed['load']:.1f} when it began.{busy}{rounding}"
    )


def about_part(detector: Detector) -> str:
    """What the file is."""
    size = detector.config.transform.max_size
    return (
        f"Preset `{detector.config.name}`, {detector.info.parameters / 1e6:.1f} M parameters, pictures at a long side "
        f"of {size} pixels; {detector.checkpoint.path.stat().st_size / 1e6:.1f} MB of float16, SHA-256 "
        f"`{sha256(detector.checkpoint.path)}`."
    )


# ---------------------------------------------------------------------------------------------------- what is done


class Cache:
    """What was computed before, in a folder; without one, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            outside(folder)
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, make: Callable[[], T]) -> T:
        file = None if self.folder is None else self.folder / f"{name}.pickle"
        if file is not None and file.exists():
            kept: T = pickle.loads(file.read_bytes())
            return kept
        print(f"{datetime.datetime.now():%H:%M:%S} {name}", flush=True)
        made = make()
        if file is not None:
            file.write_bytes(pickle.dumps(made))
        return made


def outside(path: Path) -> None:
    """Raise ``SystemExit`` for a place in the repository: photographs and what was kept do not belong there."""
    if path.resolve().is_relative_to(ROOT):
        raise SystemExit(f"{path} lies in the repository: choose a place outside of it.")


def measure_speed(weights: str, dataset: Dataset, pictures: int) -> dict[str, Any]:
    """Milliseconds of ``detect`` for one picture, the precisions taking turns.

    In fp32 also as the first checkpoint was served, so that what was added since can be seen.
    """
    detectors = {f"{precision} eager": open_detector(weights, precision) for precision in PRECISIONS}
    canvas, limits = FIRST
    name = f"fp32 eager as the first checkpoint was served ({canvas} pixels, {limits[1]} proposals)"
    detectors[name] = open_detector(weights, "fp32", canvas, limits, whole=True)
    load = os.getloadavg()[0]
    taken: dict[str, list[float]] = {name: [] for name in detectors}
    chosen = np.random.default_rng(0).permutation(len(dataset))[:pictures].tolist()
    for detector in detectors.values():
        detector.warm_up()
    for index in chosen:
        picture = dataset.load(index)
        for name, detector in detectors.items():
            start = time.perf_counter()
            detector.detect([picture])
            taken[name].append((time.perf_counter() - start) * 1000)
    spread = {name: np.percentile(values, (25, 50, 75)).round(2).tolist() for name, values in taken.items()}
    return {
        "precisions": {n: dict(zip(("p25_ms", "median_ms", "p75_ms"), v, strict=True)) for n, v in spread.items()},
        "pictures": len(chosen),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor(),
        "multiplies_bf16": multiplies_bf16(torch.device("cpu")),
        "load": round(load, 2),
        "date": f"{datetime.date.today():%Y-%m-%d}",
    }


def processor() -> str:
    """Its name, and how many cores of it there are here."""
    cores = f"{os.cpu_count()} cores"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()} ({cores})"
    return f"{platform.processor() or platform.machine()} ({cores})"


def variants_of(
    seen: dict[str, Seen], parts: dict[str, Dataset], threshold: float, folded: Calibration
) -> dict[str, Any]:
    """Scores as they are, and as other corrections of the class layer would have them. folded: what is in the weights.

    Boxes are those that were found; with other scores NMS might have kept a few others.
    """
    rows = {}
    for name, dataset in parts.items():
        distributions, class_ids, right = judged(seen[name], dataset)
        rows[name] = recalibrated(distributions, folded.inverse()), class_ids, right
    first = rows["validation"]
    heat, both = fit_calibration(*first, background=False), fit_calibration(*first)
    choices = {"as trained": Calibration(), f"temperature {heat.temperature:.3f}": heat}
    choices[f"temperature {both.temperature:.3f}, background {both.background:+.3f}"] = both
    if folded != Calibration():
        choices[f"**as shipped**: temperature {folded.temperature:.3f}, background {folded.background:+.3f}"] = folded
    count = int((judge(seen["test"].predictions, parts["test"])[0] > threshold).sum())
    told: dict[str, Any] = {}
    for words, choice in choices.items():
        row: dict[str, Any] = asdict(choice)
        for name in parts:
            distributions, class_ids, right = rows[name]
            scores = calibrated(distributions, class_ids, choice)
            heard = scores > HEARD
            row[name] = calibration_error(scores[heard], right[heard])
        best = np.argsort(-scores, kind="stable")[:count]
        told[words] = row | {"mean_score": float(scores[best].mean()), "precision": float(right[best].mean())}
    return told


def folded_into(digest: str, results: Path) -> Calibration:
    """What ``--fold`` wrote into the weights of this hash; nothing where it did not."""
    file = results / f"{NAME}-calibration.json"
    told = json.loads(file.read_text()) if file.exists() else {"sha256": None}
    return Calibration(told["temperature"], told["background"]) if told["sha256"] == digest else Calibration()


def sweep(options: argparse.Namespace, part: Dataset, cache: Cache) -> None:
    """Print the table that canvas, NMS and score threshold are chosen from: validation alone."""
    digest = sha256(resolve(options.weights).path)[:8]
    rows = []

    def row(canvas: int, nms: float) -> tuple[float, float]:
        asked = replace(WHOLE_CURVE, nms_threshold=nms)

        def run() -> tuple[list[Prediction], float]:
            detector = open_detector(options.weights, canvas=canvas, limits=options.limits)
            start = time.perf_counter()
            found = [(s.image_id, *_numpy(one)) for s, one in look(detector, part, asked)]
            return found, (time.perf_counter() - start) / len(part)

        limits = "".join(f"-{limit}" for limit in options.limits or ())
        key = f"{digest}-validation{len(part)}-fp32-{canvas}-nms{nms}-above{WHOLE_CURVE.score_threshold}{limits}"
        found, seconds = cache(key, run)
        info = replace(open_detector(options.weights).info, score_threshold=0.5)
        own = figures(info, found, part, "", "validation")
        macro, best, ap = macro_threshold(found, part), own.scores.best, own.evaluation
        rows.append((canvas, nms, ap.ap50, ap.ap, ap.ap75, best.f1, best.threshold, macro.threshold, seconds * 1000))
        return ap.ap50 + ap.ap, nms

    best = max((row(canvas, 0.5)[0], canvas) for canvas in options.canvases)[1]
    for nms in NMS:
        if nms != 0.5:
            row(best, nms)
    headings = ("canvas", "NMS", "AP@.5", "AP", "AP@.75", "best F1", "at score", "macro F1's", "ms a picture, loaded")
    print(table(headings, rows))


def fold(options: argparse.Namespace, part: Dataset, cache: Cache) -> None:
    """Write the weights with a correction in the class layer, softmax((Wx + b) / T + background): no code serves it."""
    detector = open_detector(options.weights)
    digest = sha256(detector.checkpoint.path)
    seen = cache(_key(digest, "validation", part, detector, 0.5), lambda: watch(detector, part, 0.5))
    correction = fit_calibration(*judged(seen, part), background=options.background is None)
    if options.background is not None:
        correction = replace(correction, background=options.background)
    if options.temperature is not None:
        correction = replace(correction, temperature=options.temperature)
    state = read_state(detector.checkpoint)
    state[f"{PREDICTOR}.weight"] = state[f"{PREDICTOR}.weight"] / correction.temperature
    bias = state[f"{PREDICTOR}.bias"] / correction.temperature
    bias[0] += correction.background
    state[f"{PREDICTOR}.bias"] = bias
    checkpoint = detector.checkpoint
    save(options.fold, state, preset=detector.config.name, classes=checkpoint.classes, metrics=dict(checkpoint.metrics))
    after = open_detector(str(options.fold))
    hashed = sha256(options.fold)
    again = cache(_key(hashed, "validation", part, after, 0.5), lambda: watch(after, part, 0.5))
    told: dict[str, Any] = asdict(correction) | {"sha256": hashed, "of": digest, "validation": {}}
    for name, one in (("before", seen), ("after", again)):
        own = figures(replace(after.info, score_threshold=0.5), one.predictions, part, "", "validation")
        told["validation"][name] = {
            "calibration_error": own.scores.calibration_error,
            "detections": own.scores.detections,
            "ap50": own.evaluation.ap50,
            "ap": own.evaluation.ap,
            "f1": own.scores.best.f1,
            "threshold": own.scores.best.threshold,
        }
    (options.results / f"{NAME}-calibration.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))
    print(for_manifest(hashed, own.evaluation.ap50, own.evaluation.ap, own.scores.best.threshold))


def draw(options: argparse.Namespace, part: Dataset, count: int = 10) -> None:
    """Some pictures with what is found in them at the default threshold, on one sheet."""
    outside(options.draw)
    detector, font = open_detector(options.weights), ImageFont.load_default(13)
    chosen = sorted(np.random.default_rng(options.seed).permutation(len(part))[:count].tolist())
    sheet = Image.new("RGB", (5 * 400, -(-count // 5) * 410), "white")
    limit = options.threshold
    for place, index in enumerate(chosen):
        (found,) = detector.detect([part.load(index)], DetectOptions(score_threshold=limit))
        picture = Image.fromarray(part.load(index))
        pen = ImageDraw.Draw(picture)
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels, strict=True):
            pen.rectangle(box, outline="#d6453d", width=2)
            words = f"{label} {score:.2f}"
            pen.rectangle(pen.textbbox((box[0] + 2, box[1] + 1), words, font=font), fill="#d6453d")
            pen.text((box[0] + 2, box[1] + 1), words, font=font, fill="white")
        left, top = place % 5 * 400 + 8, place // 5 * 410
        sheet.paste(picture, (left, top + 20))
        ImageDraw.Draw(sheet).text((left, top + 2), part.samples[index].path.stem, font=font, fill="black")
    sheet.save(options.draw)
    print(f"{options.draw}: {', '.join(part.samples[i].path.stem for i in chosen)}")


def for_manifest(digest: str, ap50: float, ap: float, threshold: float) -> str:
    """The lines of weights/manifest.toml that these weights need."""
    metrics = f"metrics = {{ voc20_validation_ap50 = {ap50:.3f}, voc20_validation_ap = {ap:.3f} }}"
    return f'For weights/manifest.toml:\nsha256 = "{digest}"\n{metrics}\nscore_threshold = {threshold:.2f}'


def card(options: argparse.Namespace, parts: dict[str, Dataset], cache: Cache) -> None:
    """Measure everything, and write it."""
    detector = open_detector(options.weights)
    digest = sha256(detector.checkpoint.path)
    known = detector.checkpoint.score_threshold
    first = parts["validation"]
    # Failures of validation are not told, so that any threshold will do.
    seen = {"validation": cache(_key(digest, "validation", first, detector, 0.5), lambda: watch(detector, first, 0.5))}
    chosen = report(seen["validation"].predictions, first).best.threshold
    threshold = round(chosen, 2) if known is None else known
    if abs(threshold - chosen) > 0.005:
        print(f"The manifest's score_threshold is {threshold}, and validation's best F1 is at {chosen:.3f}.")
    info = replace(detector.info, score_threshold=threshold)
    test = parts["test"]
    seen["test"] = cache(_key(digest, "test", test, detector, threshold), lambda: watch(detector, test, threshold))
    all_figures: dict[tuple[str, str], Figures] = {}
    for name, dataset in parts.items():
        for precision in PRECISIONS:
            found = seen[name].predictions
            if precision != "fp32":
                other = open_detector(options.weights, precision)
                key = _key(digest, name, dataset, other, 0.5)
                found = cache(key, lambda other=other, dataset=dataset: watch(other, dataset, 0.5)).predictions
            own = figures(replace(info, precision=precision), found, dataset, options.data.resolve().name, name)
            all_figures[name, precision] = own
            file = f"{NAME}-{name}.json" if precision == "fp32" else f"{NAME}-{name}-{precision}.json"
            (options.results / file).write_text(json.dumps(own.to_dict(), indent=1) + "\n")
    variants = variants_of(seen, parts, threshold, folded_into(digest, options.results))
    each = min(unknown.EACH, options.first or unknown.EACH)
    strange = unknown.drawn(each=each) + unknown.photographs()
    key = f"{digest[:8]}-unknown{each}-{threshold:.3f}"
    measured = cache(key, lambda: unknown.measure(detector, strange, threshold))
    speed = measure_speed(options.weights, first, options.speed)
    told = summary(seen["test"].false, seen["test"].misses)
    served = all_figures["test", "fp32"].scores.served
    assert served is not None
    curves.scores(
        *judge(seen["test"].predictions, test), wanted(test), served, chosen, options.images / "lite-scores.svg"
    )
    images = os.path.relpath(options.images, options.card.parent)
    body = figure_parts(all_figures) | {
        "about": about_part(detector),
        "scores": scores_part(
            all_figures["validation", "fp32"], all_figures["test", "fp32"], threshold, variants, images
        ),
        "unknown": unknown_part(measured),
        "failures": failures_part(told, threshold),
        "speed": speed_part(speed),
    }
    options.card.write_text(fill(options.card.read_text(), body))
    rest = {"sha256": digest, "threshold": threshold, "chosen": chosen, "variants": variants}
    rest |= {"unknown": measured, "failures": told, "speed": speed}
    (options.results / f"{NAME}-card.json").write_text(json.dumps(rest, indent=1) + "\n")
    own = all_figures["validation", "fp32"].evaluation
    print(for_manifest(digest, own.ap50, own.ap, chosen))
    for (name, precision), one in all_figures.items():
        print(f"{name} {precision}: AP@.5 {one.evaluation.ap50:.4f}, AP {one.evaluation.ap:.4f}")


def _key(digest: str, name: str, part: Dataset, detector: Detector, threshold: float) -> str:
    canvas = detector.config.transform.max_size
    nms = detector.config.roi_head.nms_threshold
    floor = WHOLE_CURVE.score_threshold
    return f"{digest[:8]}-{name}{len(part)}-{detector.precision}-{canvas}-nms{nms}-above{floor}-told{threshold:.3f}"


def _numpy(found: Any) -> tuple[Any, Any, Any]:
    return found.boxes.numpy(), found.scores.numpy(), found.class_ids.numpy()


def _arrays(prediction: Prediction) -> tuple[int | str, Any, Any, Any]:
    image_id, *rest = prediction
    boxes, scores, class_ids = map(np.asarray, rest)
    return image_id, boxes, scores, class_ids


def _stem(name: str) -> str:
    return Path(name).stem


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of voc20")
    parser.add_argument("--weights", default=NAME, help="a name of the manifest, or a file")
    parser.add_argument("--cache", type=Path, help="a folder outside the repository for what was found")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--canvases", type=int, nargs="+", default=CANVASES, help="for --sweep")
    parser.add_argument(
        "--limits",
        type=int,
        nargs=2,
        metavar=("CANDIDATES", "PROPOSALS"),
        help="for --sweep: the RPN's, of a level and in all",
    )
    parser.add_argument("--fold", type=Path, metavar="OUT")
    parser.add_argument("--temperature", type=float, help="for --fold, instead of a fitted one")
    parser.add_argument("--background", type=float, help="the same for the background's offset; 0 for none")
    parser.add_argument("--draw", type=Path, metavar="OUT")
    parser.add_argument("--threshold", type=float, help="for --draw, instead of the default")
    parser.add_argument("--seed", type=int, default=0, help="for --draw")
    parser.add_argument("--first", type=int, help="only so many pictures of each part: to try it out")
    parser.add_argument("--speed", type=int, default=60, help="pictures to time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--card", type=Path, default=ROOT / f"weights/{NAME}.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--images", type=Path, default=ROOT / "docs/images")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    configure_malloc()
    cache = Cache(options.cache)

    def part(name: str) -> Dataset:
        dataset = load_part(options.data, name)
        return dataset.subset(range(min(options.first, len(dataset)))) if options.first else dataset

    if options.sweep:
        sweep(options, part("validation"), cache)
    elif options.fold:
        fold(options, part("validation"), cache)
    elif options.draw:
        draw(options, part("test"))
    else:
        card(options, {"validation": part("validation"), "test": part("test")}, cache)


if __name__ == "__main__":
    main()
