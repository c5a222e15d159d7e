"""Measure all figures of the model card, and write it.

    python -m benchmarks.quality.card --data ../shared/data/voc20 --cache /somewhere/else

measures ``--weights`` on validation and on test, in fp32, bf16 and int8, and on images without its
classes; writes weights/lite-voc20.md between its markers, docs/images/lite-scores.svg, and into benchmarks/results/ a
lite-voc20-PART-PRECISION.json for each (test in fp32 is lite-voc20-test.json), as ``frcnn evaluate --json`` does, and
lite-voc20-card.json with the rest. Before that, on validation alone:

    --sweep                 what canvas and NMS threshold would give, and which score threshold is best
    --fold OUT.safetensors  the same weights with their last class layer scaled, so that scores are calibrated: a
                            temperature and an offset for the background, fitted on validation
    --draw OUT.png          ten test images with their boxes, to look at; outside the repository

--cache keeps detections by the weights' hash, so that a second run only writes. Give it a new folder after a change to
the detector's code.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.lib import machine, markers, results, timing
from benchmarks.lib.results import ROOT
from benchmarks.quality import card_text, curves, unknown
from benchmarks.quality.card_text import PRECISIONS, table
from benchmarks.quality.failures import Evaluated, evaluate, summary
from model.checkpoint import load_into, merge_fc6, read_state, resolve, save, sha256
from model.data import Dataset
from model.detector import DetectOptions, Detector
from model.evaluation.operating_points import (
    IGNORED,
    MIN_SCORE,
    OperatingPoint,
    build_score_report,
    expected_calibration_error,
    judge_detections,
    match_detections,
    operating_point,
)
from model.evaluation.predictions import WHOLE_CURVE, Prediction, run_detector
from model.evaluation.report import EvaluationReport, build_report, load_split
from model.evaluation.temperature_scaling import (
    TemperatureScaling,
    fit_temperature_scaling,
    scale_distributions,
    scale_scores,
)
from model.faster_rcnn import FasterRCNN
from model.runtime.malloc import configure_malloc
from model.runtime.precision import multiplies_bf16

NAME = "lite-voc20"
CANVASES = (384, 416, 448, 480, 512)
NMS = (0.4, 0.45, 0.5, 0.55, 0.6)
FIRST = (384, (300, 150))  # the first checkpoint's canvas, candidates a level, and proposals
PREDICTOR = "roi_heads.box_predictor.cls_score"

T = TypeVar("T")


def open_detector(
    weights: str,
    precision: str = "fp32",
    canvas: int | None = None,
    limits: Sequence[int] | None = None,
    whole: bool = False,
) -> Detector:
    """Load the checkpoint's detector. canvas: another short and long side than the preset's.

    limits: other numbers than the preset's of candidates a level before NMS, and of proposals after it. whole: with
    fc6 in one layer, which answers the same.
    """
    detector = Detector.from_checkpoint(weights, precision=precision, device="cpu")
    if canvas is None and limits is None and not whole:
        return detector
    config, state = detector.config, read_state(detector.checkpoint)
    if whole and config.roi_head.fc6_rank is not None:
        config, state = replace(config, roi_head=replace(config.roi_head, fc6_rank=None)), merge_fc6(state)
    if canvas is not None:
        config = replace(config, transform=replace(config.transform, min_size=canvas, max_size=canvas))
    if limits is not None:
        config = replace(config, rpn=replace(config.rpn, pre_nms=limits[0], post_nms=limits[1]))
    model = FasterRCNN(config)
    load_into(model, state)
    return Detector(model, detector.checkpoint, precision=precision, device="cpu")


def judged(evaluated: Evaluated, dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Return class scores [K, C], classes [K] and correctness [K] of the detections that ``judge`` counts."""
    samples = {sample.image_id: sample for sample in dataset.samples}
    rows, class_ids, right = [], [], []
    for (image_id, boxes, scores, classes), distributions in zip(
        evaluated.predictions, evaluated.distributions, strict=True
    ):
        matches = match_detections(boxes, scores, classes, samples[image_id])
        counted = matches != IGNORED
        rows.append(distributions[counted])
        class_ids.append(np.asarray(classes)[counted])
        right.append(matches[counted] >= 0)
    return np.concatenate(rows), np.concatenate(class_ids), np.concatenate(right)


def count_boxes(dataset: Dataset) -> int:
    """Return how many boxes count."""
    return sum(int((~sample.ignore).sum()) for sample in dataset.samples)


def macro_threshold(predictions: Iterable[Prediction], dataset: Dataset) -> OperatingPoint:
    """Return the threshold, in hundredths, with the best mean F1 over classes, and its figures over all."""
    predictions = list(predictions)
    grid = np.arange(0.01, 1.0, 0.01)
    lines = []
    for class_id in range(1, len(dataset.classes)):
        boxes = sum(int(((s.class_ids == class_id) & ~s.ignore).sum()) for s in dataset.samples)
        if not boxes:
            continue
        own = [(i, b[c == class_id], s[c == class_id], c[c == class_id]) for i, b, s, c in map(_arrays, predictions)]
        scores, right = judge_detections(own, dataset)
        lines.append([operating_point(scores, right, boxes, 1, float(t)).f1 for t in grid])
    best = float(grid[np.mean(lines, axis=0).argmax()])
    return operating_point(*judge_detections(predictions, dataset), count_boxes(dataset), len(dataset), best)


class Cache:
    """Keeps results by name in a folder outside the repository; without a folder, keeps nothing."""

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
        result = make()
        if file is not None:
            file.write_bytes(pickle.dumps(result))
        return result


def outside(path: Path) -> None:
    """Raise ``SystemExit`` for a path in the repository: photographs and caches do not belong there."""
    if path.resolve().is_relative_to(ROOT):
        raise SystemExit(f"{path} lies in the repository: choose a place outside of it.")


def measure_speed(weights: str, dataset: Dataset, images: int) -> dict[str, Any]:
    """Measure the milliseconds of ``detect`` for one image, the precisions taking turns.

    In fp32 also as the first checkpoint was served, to show what has been added since.
    """
    detectors = {precision: open_detector(weights, precision) for precision in PRECISIONS}
    canvas, limits = FIRST
    name = f"fp32 as the first checkpoint was served ({canvas} pixels, {limits[1]} proposals)"
    detectors[name] = open_detector(weights, "fp32", canvas, limits, whole=True)
    load = machine.load_average()
    milliseconds: dict[str, list[float]] = {name: [] for name in detectors}
    chosen = np.random.default_rng(0).permutation(len(dataset))[:images].tolist()
    for detector in detectors.values():
        detector.warm_up()
    for index in chosen:
        images_of_turn = [dataset.load(index)]
        for name, detector in detectors.items():
            milliseconds[name].append(1000 * timing.time_call(partial(detector.detect, images_of_turn)))
    spread = {name: np.percentile(values, (25, 50, 75)).round(2).tolist() for name, values in milliseconds.items()}
    return {
        "precisions": {n: dict(zip(("p25_ms", "median_ms", "p75_ms"), v, strict=True)) for n, v in spread.items()},
        "images": len(chosen),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": f"{machine.processor()}, {machine.cores()} cores",
        "multiplies_bf16": multiplies_bf16(torch.device("cpu")),
        "load": load,
        "date": f"{datetime.date.today():%Y-%m-%d}",
    }


def variants_of(
    evaluated: dict[str, Evaluated], parts: dict[str, Dataset], threshold: float, folded: TemperatureScaling
) -> dict[str, Any]:
    """Return calibration figures of the scores as they are and with other temperatures. folded: is in the weights.

    The boxes are the same for all; with other scores NMS might have kept a few others.
    """
    rows = {}
    for name, dataset in parts.items():
        distributions, class_ids, right = judged(evaluated[name], dataset)
        rows[name] = scale_distributions(distributions, folded.inverse()), class_ids, right
    first = rows["validation"]
    temperature, both = fit_temperature_scaling(*first, background=False), fit_temperature_scaling(*first)
    choices = {"as trained": TemperatureScaling(), f"temperature {temperature.temperature:.3f}": temperature}
    choices[f"temperature {both.temperature:.3f}, background {both.background:+.3f}"] = both
    if folded != TemperatureScaling():
        choices[f"**as shipped**: temperature {folded.temperature:.3f}, background {folded.background:+.3f}"] = folded
    count = int((judge_detections(evaluated["test"].predictions, parts["test"])[0] > threshold).sum())
    figures_of: dict[str, Any] = {}
    for description, choice in choices.items():
        row: dict[str, Any] = asdict(choice)
        for name in parts:
            distributions, class_ids, right = rows[name]
            scores = scale_scores(distributions, class_ids, choice)
            above = scores > MIN_SCORE
            row[name] = expected_calibration_error(scores[above], right[above])
        best = np.argsort(-scores, kind="stable")[:count]
        figures_of[description] = row | {
            "mean_score": float(scores[best].mean()),
            "precision": float(right[best].mean()),
        }
    return figures_of


def folded_into(digest: str, folder: Path) -> TemperatureScaling:
    """Return the correction that ``--fold`` wrote into the weights of this hash; the neutral one where it did not."""
    file = folder / f"{NAME}-calibration.json"
    folded = json.loads(file.read_text()) if file.exists() else {"sha256": None}
    return (
        TemperatureScaling(folded["temperature"], folded["background"])
        if folded["sha256"] == digest
        else TemperatureScaling()
    )


def sweep(options: argparse.Namespace, part: Dataset, cache: Cache) -> None:
    """Print the table that canvas, NMS and score threshold are chosen from: validation alone."""
    digest = sha256(resolve(options.weights).path)[:8]
    rows = []

    def row(canvas: int, nms: float) -> tuple[float, float]:
        detect_options = replace(WHOLE_CURVE, nms_threshold=nms)

        def run() -> tuple[list[Prediction], float]:
            detector = open_detector(options.weights, canvas=canvas, limits=options.limits)
            start = time.perf_counter()
            predictions = [
                (s.image_id, *_numpy(detections)) for s, detections in run_detector(detector, part, detect_options)
            ]
            return predictions, (time.perf_counter() - start) / len(part)

        limits = "".join(f"-{limit}" for limit in options.limits or ())
        key = f"{digest}-validation{len(part)}-fp32-{canvas}-nms{nms}-above{WHOLE_CURVE.score_threshold}{limits}"
        predictions, seconds = cache(key, run)
        info = replace(open_detector(options.weights).info, score_threshold=0.5)
        own = build_report(info, predictions, part, "", "validation")
        macro, best, ap = macro_threshold(predictions, part), own.scores.best, own.evaluation
        rows.append((canvas, nms, ap.ap50, ap.ap, ap.ap75, best.f1, best.threshold, macro.threshold, seconds * 1000))
        return ap.ap50 + ap.ap, nms

    best = max((row(canvas, 0.5)[0], canvas) for canvas in options.canvases)[1]
    for nms in NMS:
        if nms != 0.5:
            row(best, nms)
    headings = ("canvas", "NMS", "AP@.5", "AP", "AP@.75", "best F1", "at score", "macro F1's", "ms per image, loaded")
    print(table(headings, rows))


def fold(options: argparse.Namespace, part: Dataset, cache: Cache) -> None:
    """Write the weights with softmax((Wx + b) / T + background) folded into the class layer."""
    detector = open_detector(options.weights)
    digest = sha256(detector.checkpoint.path)
    before = cache(_key(digest, "validation", part, detector, 0.5), lambda: evaluate(detector, part, 0.5))
    correction = fit_temperature_scaling(*judged(before, part), background=options.background is None)
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
    folded = open_detector(str(options.fold))
    hashed = sha256(options.fold)
    after = cache(_key(hashed, "validation", part, folded, 0.5), lambda: evaluate(folded, part, 0.5))
    result: dict[str, Any] = asdict(correction) | {"sha256": hashed, "of": digest, "validation": {}}
    for name, evaluated in (("before", before), ("after", after)):
        own = build_report(replace(folded.info, score_threshold=0.5), evaluated.predictions, part, "", "validation")
        result["validation"][name] = {
            "calibration_error": own.scores.calibration_error,
            "detections": own.scores.detections,
            "ap50": own.evaluation.ap50,
            "ap": own.evaluation.ap,
            "f1": own.scores.best.f1,
            "threshold": own.scores.best.threshold,
        }
    results.write_json(options.results / f"{NAME}-calibration.json", result)
    print(json.dumps(result, indent=1))
    print(for_manifest(hashed, own.evaluation.ap50, own.evaluation.ap, own.scores.best.threshold))


def draw(options: argparse.Namespace, part: Dataset, count: int = 10) -> None:
    """Draw some images with their detections at the default threshold, on one sheet."""
    outside(options.draw)
    detector, font = open_detector(options.weights), ImageFont.load_default(13)
    chosen = sorted(np.random.default_rng(options.seed).permutation(len(part))[:count].tolist())
    sheet = Image.new("RGB", (5 * 400, -(-count // 5) * 410), "white")
    limit = options.threshold
    for place, index in enumerate(chosen):
        (detections,) = detector.detect([part.load(index)], DetectOptions(score_threshold=limit))
        image = Image.fromarray(part.load(index))
        pen = ImageDraw.Draw(image)
        for box, score, label in zip(
            detections.boxes.tolist(), detections.scores.tolist(), detections.labels, strict=True
        ):
            pen.rectangle(box, outline="#d6453d", width=2)
            caption = f"{label} {score:.2f}"
            pen.rectangle(pen.textbbox((box[0] + 2, box[1] + 1), caption, font=font), fill="#d6453d")
            pen.text((box[0] + 2, box[1] + 1), caption, font=font, fill="white")
        left, top = place % 5 * 400 + 8, place // 5 * 410
        sheet.paste(image, (left, top + 20))
        ImageDraw.Draw(sheet).text((left, top + 2), part.samples[index].path.stem, font=font, fill="black")
    sheet.save(options.draw)
    print(f"{options.draw}: {', '.join(part.samples[i].path.stem for i in chosen)}")


def for_manifest(digest: str, ap50: float, ap: float, threshold: float) -> str:
    """Return the lines of weights/manifest.toml that these weights need."""
    metrics = f"metrics = {{ voc20_validation_ap50 = {ap50:.3f}, voc20_validation_ap = {ap:.3f} }}"
    return f'For weights/manifest.toml:\nsha256 = "{digest}"\n{metrics}\nscore_threshold = {threshold:.2f}'


def card(options: argparse.Namespace, parts: dict[str, Dataset], cache: Cache) -> None:
    """Measure everything, and write the card."""
    detector = open_detector(options.weights)
    digest = sha256(detector.checkpoint.path)
    manifest_threshold = detector.checkpoint.score_threshold
    first = parts["validation"]
    # Failures on validation are not shown, so that any threshold will do.
    evaluated = {
        "validation": cache(_key(digest, "validation", first, detector, 0.5), lambda: evaluate(detector, first, 0.5))
    }
    chosen = build_score_report(evaluated["validation"].predictions, first).best.threshold
    threshold = round(chosen, 2) if manifest_threshold is None else manifest_threshold
    if abs(threshold - chosen) > 0.005:
        print(f"The manifest's score_threshold is {threshold}, and validation's best F1 is at {chosen:.3f}.")
    info = replace(detector.info, score_threshold=threshold)
    test = parts["test"]
    evaluated["test"] = cache(
        _key(digest, "test", test, detector, threshold), lambda: evaluate(detector, test, threshold)
    )
    all_figures: dict[tuple[str, str], EvaluationReport] = {}
    for name, dataset in parts.items():
        for precision in PRECISIONS:
            predictions = evaluated[name].predictions
            if precision != "fp32":
                other = open_detector(options.weights, precision)
                key = _key(digest, name, dataset, other, 0.5)
                predictions = cache(key, lambda other=other, dataset=dataset: evaluate(other, dataset, 0.5)).predictions
            own = build_report(
                replace(info, precision=precision), predictions, dataset, options.data.resolve().name, name
            )
            all_figures[name, precision] = own
            file = f"{NAME}-{name}.json" if precision == "fp32" else f"{NAME}-{name}-{precision}.json"
            results.write_json(options.results / file, own.to_dict())
    variants = variants_of(evaluated, parts, threshold, folded_into(digest, options.results))
    each = min(unknown.EACH, options.first or unknown.EACH)
    unknown_images = unknown.drawn(each=each) + unknown.photographs()
    key = f"{digest[:8]}-unknown{each}-{threshold:.3f}"
    measured = cache(key, lambda: unknown.measure(detector, unknown_images, threshold))
    speed = measure_speed(options.weights, first, options.speed)
    failures = summary(evaluated["test"].false, evaluated["test"].misses)
    served = all_figures["test", "fp32"].scores.served
    assert served is not None
    curves.scores(
        *judge_detections(evaluated["test"].predictions, test),
        count_boxes(test),
        served,
        chosen,
        options.images / "lite-scores.svg",
    )
    images = os.path.relpath(options.images, options.card.parent)
    body = card_text.figure_parts(all_figures) | {
        "about": card_text.about_part(detector),
        "scores": card_text.scores_part(
            all_figures["validation", "fp32"], all_figures["test", "fp32"], threshold, variants, images
        ),
        "unknown": card_text.unknown_part(measured),
        "failures": card_text.failures_part(failures, threshold),
        "speed": card_text.speed_part(speed),
    }
    options.card.write_text(fill_card(options.card.read_text(), body))
    rest = {"sha256": digest, "threshold": threshold, "chosen": chosen, "variants": variants}
    rest |= {"unknown": measured, "failures": failures, "speed": speed}
    results.write_json(options.results / f"{NAME}-card.json", rest)
    own = all_figures["validation", "fp32"].evaluation
    print(for_manifest(digest, own.ap50, own.ap, chosen))
    for (name, precision), own_figures in all_figures.items():
        evaluation = own_figures.evaluation
        print(f"{name} {precision}: AP@.5 {evaluation.ap50:.4f}, AP {evaluation.ap:.4f}")


def fill_card(text: str, parts: dict[str, str]) -> str:
    """Return ``text`` with each part between its ``<!-- card: NAME -->`` and ``<!-- end -->``."""
    return markers.fill_all(text, {name: f"{part.strip()}\n" for name, part in parts.items()}, kind="card")


def _key(digest: str, name: str, part: Dataset, detector: Detector, threshold: float) -> str:
    canvas = detector.config.transform.max_size
    nms = detector.config.roi_head.nms_threshold
    floor = WHOLE_CURVE.score_threshold
    return f"{digest[:8]}-{name}{len(part)}-{detector.precision}-{canvas}-nms{nms}-above{floor}-told{threshold:.3f}"


def _numpy(detections: Any) -> tuple[Any, Any, Any]:
    return detections.boxes.numpy(), detections.scores.numpy(), detections.class_ids.numpy()


def _arrays(prediction: Prediction) -> tuple[int | str, Any, Any, Any]:
    image_id, *rest = prediction
    boxes, scores, class_ids = map(np.asarray, rest)
    return image_id, boxes, scores, class_ids


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of voc20")
    parser.add_argument("--weights", default=NAME, help="a name of the manifest, or a file")
    parser.add_argument("--cache", type=Path, help="a folder outside the repository for detections")
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
    parser.add_argument("--first", type=int, help="only so many images of each part: to try it out")
    parser.add_argument("--speed", type=int, default=60, help="images to time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--card", type=Path, default=ROOT / f"weights/{NAME}.md")
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--images", type=Path, default=ROOT / "docs/images")
    options = parser.parse_args(arguments)
    configure_malloc()
    torch.set_num_threads(options.threads)
    cache = Cache(options.cache)

    def part(name: str) -> Dataset:
        dataset = load_split(options.data, name)
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
