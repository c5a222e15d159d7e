"""The paper's claim, measured: are learned proposals better than Selective Search's, and nearly free? (P 3.4, Table 5.)

    pip install -e '.[train]' opencv-contrib-python-headless
    python benchmarks/proposals.py --data ../shared/data/voc20 --weights lite-voc20

Recall of the counted boxes of ``test`` by the first k proposals, and seconds a picture, for our RPN and for OpenCV's
Selective Search. One thread each; the methods take turns at every picture, so that the machine's moods hit all alike.
EdgeBoxes is left out: OpenCV has the code, but not the trained edge model (structured forests) that it needs, and that
is in no package.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from model import boxes as box_ops
from model.checkpoint import load_into, read_state, resolve
from model.detector import Detector, find_preset
from model.faster_rcnn import Dense, FasterRCNN
from model.roi_head import stack_regions
from model.structures import DetectOptions
from model.training.data import Dataset, load_dataset

COUNTS = (10, 50, 100, 300, 1000)
OVERLAPS = (0.5, 0.7)
ROOT = Path(__file__).resolve().parent.parent
COLOURS = ("#c0392b", "#2471a3", "#7d8b99", "#1e8449")


def detector_with(weights: str, proposals: int | None) -> Detector:
    """The checkpoint's detector; with ``proposals``, its RPN keeps so many of each level, and so many in all."""
    checkpoint = resolve(weights)
    config = find_preset(checkpoint.preset or "LITE").with_classes(len(checkpoint.classes))
    if proposals is not None:
        config = replace(config, rpn=replace(config.rpn, pre_nms=proposals, post_nms=proposals))
    model = FasterRCNN(config)
    load_into(model, read_state(checkpoint))
    return Detector(model, checkpoint)


def rpn(detector: Detector) -> Callable[[np.ndarray], np.ndarray]:
    """Pictures [H, W, 3] RGB to proposals [R, 4], best first: all from pixels on, but no detector."""

    @torch.inference_mode()
    def propose(picture: np.ndarray) -> np.ndarray:
        batch = detector.transform([picture], detector.canvas_for(*picture.shape[:2]), detector.device)
        dense = detector.model.dense(batch.pixels.to(detector.dtype))
        (found,) = detector.model.rpn.propose(detector.model.candidates(dense, batch))
        return box_ops.rescale(found.boxes, batch.sizes[0], batch.original_sizes[0]).numpy()

    return propose


def selective_search(quality: bool) -> Callable[[np.ndarray], np.ndarray]:
    """OpenCV's Selective Search (Uijlings et al. 2013), its proposals in the order that it gives them."""

    def propose(picture: np.ndarray) -> np.ndarray:
        cv2.setRNGSeed(0)  # its ranks are partly drawn at random
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(picture[:, :, ::-1]))
        if quality:
            search.switchToSelectiveSearchQuality()
        else:
            search.switchToSelectiveSearchFast()
        found = search.process().astype(np.float32)[: COUNTS[-1]]
        found[:, 2:] += found[:, :2]
        return found

    return propose


def best_overlaps(proposals: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each count k and box the best IoU with the first k proposals: [counts, G]."""
    overlaps = box_ops.iou(torch.from_numpy(truth.copy()), torch.from_numpy(proposals)).numpy()
    return np.stack([overlaps[:, :count].max(axis=1, initial=0) for count in COUNTS])


def recalls(best: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Recall by IoU and count."""
    every = np.concatenate(best, axis=1)
    return {
        str(overlap): {str(k): round(float((row >= overlap).mean()), 4) for k, row in zip(COUNTS, every, strict=True)}
        for overlap in OVERLAPS
    }


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    low, middle, high = np.percentile(np.array(seconds) * 1000, (25, 50, 75))
    return {"median_ms": round(middle, 2), "p25_ms": round(low, 2), "p75_ms": round(high, 2)}


@torch.inference_mode()
def shares(detector: Detector, dataset: Dataset, indices: list[int]) -> dict[str, Any]:
    """Where the whole detector's time goes; the RPN's own part is its head and its proposals, the maps are shared."""
    model, options = detector.model, detector.defaults
    laps: dict[str, list[float]] = {}
    for index in indices:
        picture, clock = dataset.load(index), [time.perf_counter()]
        batch = detector.transform([picture], detector.canvas_for(*picture.shape[:2]), detector.device)
        clock.append(time.perf_counter())
        maps = model.backbone(batch.pixels.to(detector.dtype))
        clock.append(time.perf_counter())
        logits, deltas = model.rpn.head(maps)
        clock.append(time.perf_counter())
        dense = Dense(maps, logits, deltas)
        (found,) = model.rpn.propose(model.candidates(dense, batch))
        clock.append(time.perf_counter())
        rows = model.roi_heads(maps, stack_regions([found.boxes]))
        height, width = batch.sizes[0].tolist()
        model.roi_heads.detections(
            *rows,
            found.boxes,
            (height, width),
            score_threshold=options.score_threshold or 0.0,
            nms_threshold=options.nms_threshold or 0.5,
            max_detections=options.max_detections,
        )
        clock.append(time.perf_counter())
        for name, start, end in zip(
            ("transform", "backbone", "rpn_head", "rpn_proposals", "detector"), clock, clock[1:], strict=False
        ):
            laps.setdefault(name, []).append(end - start)
    medians = {name: statistics.median(values) for name, values in laps.items()}
    whole = sum(medians.values())
    return {
        "stages": {name: spread(values) for name, values in laps.items()},
        "rpn_share": round((medians["rpn_head"] + medians["rpn_proposals"]) / whole, 4),
        "whole_ms": round(whole * 1000, 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def plot(methods: dict[str, dict[str, Any]]) -> str:
    """Recall against the number of proposals (logarithmic), a panel an IoU: a small SVG."""
    parts = []
    for panel, overlap in enumerate(OVERLAPS):
        left, top, width, height = 50 + panel * 330, 40, 270, 200
        parts.append(f'<text x="{left}" y="{top - 14}">Recall at IoU {overlap}</text>')
        for tick in range(0, 11, 2):
            y = top + height * (1 - tick / 10)
            parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{tick / 10:.1f}</text>')
        places = [left + width * (np.log10(k) - 1) / 2 for k in COUNTS]
        for k, x in zip(COUNTS, places, strict=True):
            parts.append(f'<text x="{x:.0f}" y="{top + height + 18}" text-anchor="middle">{k}</text>')
        for number, method in enumerate(methods.values()):
            ys = [top + height * (1 - method["recall"][str(overlap)][str(k)]) for k in COUNTS]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, ys, strict=True))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[number]}" stroke-width="2"/>')
    for number, name in enumerate(methods):
        x = 50 + number * 215
        parts.append(f'<rect x="{x}" y="278" width="12" height="12" fill="{COLOURS[number]}"/>')
        parts.append(f'<text x="{x + 18}" y="289">{name}</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="680" height="300" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def page(result: dict[str, Any]) -> str:
    """The table for docs/."""
    lines = [
        "# Proposals: the RPN against Selective Search",
        "",
        f"`benchmarks/proposals.py` on {result['pictures']} pictures of voc20/test (seed {result['seed']}, "
        f"{result['boxes']} boxes that count), {result['processor']}, one thread, RPN in {result['precision']}.",
        "",
        "![recall against the number of proposals](proposals.svg)",
        "",
        "| method | IoU | " + " | ".join(map(str, COUNTS)) + " | ms a picture (quartiles) |",
        "|---|---|" + "---|" * (len(COUNTS) + 1),
    ]
    for name, method in result["methods"].items():
        time_ = method["seconds"]
        for overlap in OVERLAPS:
            cells = " | ".join(f"{method['recall'][str(overlap)][str(k)]:.3f}" for k in COUNTS)
            shown = f"{time_['median_ms']:.0f} ({time_['p25_ms']:.0f} to {time_['p75_ms']:.0f})"
            lines.append(f"| {name} | {overlap} | {cells} | {shown if overlap == OVERLAPS[0] else ''} |")
    detector = result["detector"]
    lines += [
        "",
        "The RPN's time is from pixels to proposals, backbone included; Selective Search leaves the detector's "
        f"backbone still to do. As served ({result['as_served']} proposals), the RPN's own part (head, top-k, NMS) is "
        f"{detector['rpn_share']:.0%} of the detector's {detector['whole_ms']:.0f} ms.",
        "The RPN was trained on voc20/train, the other knows no classes and no training. For the curve it keeps 1000 a "
        "level and 1000 in all. EdgeBoxes is missing: its trained edge model is in no package.",
        f"Over all {result['whole_test']['pictures']} test pictures the RPN's recall is "
        + "; ".join(
            f"at IoU {overlap}: " + ", ".join(f"{v:.3f} ({k})" for k, v in row.items())
            for overlap, row in result["whole_test"]["recall"].items()
        )
        + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument(
        "--pictures", type=int, default=100, help="for all methods; the quality mode takes seconds each"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    dataset = load_dataset(options.data, "test", on_bad_box="skip")
    wide = detector_with(options.weights, COUNTS[-1])
    served = detector_with(options.weights, None)
    served.detect([dataset.load(0)], DetectOptions())
    propose = rpn(wide)
    methods = {
        "RPN (ours)": propose,
        "Selective Search, fast": selective_search(False),
        "Selective Search, quality": selective_search(True),
    }
    chosen = sorted(np.random.default_rng(options.seed).permutation(len(dataset))[: options.pictures].tolist())
    best: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for index in chosen:
        picture, sample = dataset.load(index), dataset.samples[index]
        for name, method in methods.items():
            start = time.perf_counter()
            found = method(picture)
            seconds[name].append(time.perf_counter() - start)
            best[name].append(best_overlaps(found, sample.boxes[~sample.ignore]))
    everywhere = [
        best_overlaps(propose(dataset.load(i)), sample.boxes[~sample.ignore])
        for i, sample in enumerate(dataset.samples)
    ]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    result = {
        "data": "voc20/test",
        "weights": wide.checkpoint.name,
        "pictures": len(chosen),
        "seed": options.seed,
        "boxes": sum(part.shape[1] for part in best["RPN (ours)"]),
        "processor": _processor(),
        "threads": 1,
        "precision": wide.precision,
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "commit": commit.stdout.strip(),
        "methods": {name: {"recall": recalls(best[name]), "seconds": spread(seconds[name])} for name in methods},
        "whole_test": {"pictures": len(dataset), "recall": recalls(everywhere)},
        "as_served": served.config.rpn.post_nms,
        "detector": shares(served, dataset, chosen),
    }
    (ROOT / "benchmarks" / "results" / "proposals.json").write_text(json.dumps(result, indent=1) + "\n")
    (ROOT / "docs" / "proposals.svg").write_text(plot(result["methods"]))
    (ROOT / "docs" / "proposals.md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
