"""Compare the RPN's proposals with Selective Search's in recall and time (section 3.4 and table 5 of the paper).

    pip install -e '.[train,bench]'
    python -m benchmarks.quality.proposals --data ../shared/data/voc20 --search fast      # once: slow, resumable
    python -m benchmarks.quality.proposals --data ../shared/data/voc20 --search quality   # four times as slow
    python -m benchmarks.quality.proposals --data ../shared/data/voc20                    # the RPN's recall
    python -m benchmarks.quality.proposals --data ../shared/data/voc20 --times            # on a quiet machine

Recall is of the boxes of ``test`` that count, by the first k proposals. It does not depend on the machine, and
Selective Search's not on the weights either: it is computed once and kept in ``--cache``, images in a seeded order,
so that however far it has come is a fair sample. Times are taken with one thread, the methods in turn on every image.
Each of the last two writes its part of benchmarks/results/proposals.json, and docs/proposals.md and .svg from both.

EdgeBoxes is left out. OpenCV has its code, but not the trained edge model (structured forests) that it needs, and that
is in no package that we found.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.lib import results, timing
from benchmarks.lib.machine import commit, processor
from benchmarks.lib.results import ROOT
from model import boxes as box_ops
from model.checkpoint import load_into, match_fc6_rank, read_state, resolve
from model.data import Dataset, load_dataset
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.presets import find_preset
from model.runtime.malloc import configure_malloc

COUNTS = (10, 50, 100, 300, 1000)
OVERLAPS = (0.5, 0.7)
RPN = "RPN (ours)"
SEARCHES = {"fast": "Selective Search, fast", "quality": "Selective Search, quality"}
COLOURS = {RPN: "#c0392b", SEARCHES["fast"]: "#2471a3", SEARCHES["quality"]: "#7d8b99"}

Propose = Callable[[np.ndarray], np.ndarray]


def detector_with(weights: str, proposals: int | None) -> Detector:
    """Load the checkpoint's detector; ``proposals``: how many its RPN keeps of each level and in all."""
    checkpoint = resolve(weights)
    state = read_state(checkpoint)
    config = match_fc6_rank(find_preset(checkpoint.preset or "LITE").with_classes(len(checkpoint.classes)), state)
    if proposals is not None:
        config = replace(config, rpn=replace(config.rpn, pre_nms=proposals, post_nms=proposals))
    model = FasterRCNN(config)
    load_into(model, state)
    return Detector(model, checkpoint, device="cpu", precision="fp32")


def rpn(detector: Detector) -> Propose:
    """Return a function from an image [H, W, 3] RGB to the RPN's proposals [R, 4], best first; no detector runs."""

    @torch.inference_mode()
    def propose(image: np.ndarray) -> np.ndarray:
        batch = detector.transform([image], detector.canvas_for(*image.shape[:2]), detector.device)
        output = detector.model.run_convolutions(batch.pixels.to(detector.dtype))
        (proposals,) = detector.model.rpn.select_proposals(detector.model.select_candidates(output, batch))
        return box_ops.rescale(proposals.boxes, batch.sizes[0], batch.original_sizes[0]).numpy()

    return propose


def selective_search(mode: str) -> Propose:
    """Return OpenCV's Selective Search (Uijlings et al. 2013); its proposals are in the order that it gives them."""

    def propose(image: np.ndarray) -> np.ndarray:
        cv2.setRNGSeed(0)  # its ranks are partly drawn at random
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(image[:, :, ::-1]))
        if mode == "quality":
            search.switchToSelectiveSearchQuality()
        else:
            search.switchToSelectiveSearchFast()
        boxes = search.process().astype(np.float32)[: COUNTS[-1]]
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    return propose


def best_overlaps(proposals: np.ndarray, dataset: Dataset, index: int) -> np.ndarray:
    """Return for each count k and each box that counts the best IoU with the first k proposals: [counts, G]."""
    sample = dataset.samples[index]
    truth = torch.from_numpy(sample.boxes[~sample.ignore])
    overlaps = box_ops.iou(truth, torch.from_numpy(proposals)).numpy()
    return np.stack([overlaps[:, :count].max(axis=1, initial=0) for count in COUNTS])


def recalls(best: dict[int, np.ndarray]) -> dict[str, Any]:
    """Return the recall by IoU and count, from best overlaps [counts, G] by image."""
    every = np.concatenate([best[index] for index in sorted(best)], axis=1)
    return {
        "images": len(best),
        "boxes": every.shape[1],
        "recall": {
            str(overlap): {
                str(k): round(float((row >= overlap).mean()), 4) for k, row in zip(COUNTS, every, strict=True)
            }
            for overlap in OVERLAPS
        },
    }


class Cache:
    """Selective Search's best overlaps by image, one JSON object in each line: a run that stopped continues."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.path = folder / f"selective-search-{mode}.jsonl"

    def read(self, dataset: Dataset) -> dict[int, np.ndarray]:
        """Return what is there, by the image's position in the data set."""
        position = {sample.path.name: i for i, sample in enumerate(dataset.samples)}
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        rows = (json.loads(line) for line in lines)
        return {position[row["image"]]: np.array(row["best"]).reshape(len(COUNTS), -1) for row in rows}

    def fill(self, mode: str, dataset: Dataset, images: int, seed: int) -> None:
        """Compute what is missing of the first ``images`` in the seeded order."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        done, propose = self.read(dataset), selective_search(mode)
        order = np.random.default_rng(seed).permutation(len(dataset))[:images].tolist()
        with self.path.open("a") as file:
            for number, index in enumerate(order, start=1):
                if index in done:
                    continue
                best = best_overlaps(propose(dataset.load(index)), dataset, index)
                row = {"image": dataset.samples[index].path.name, "best": best.round(5).tolist()}
                file.write(json.dumps(row) + "\n")
                file.flush()
                if number % 50 == 0:
                    print(f"{SEARCHES[mode]}: {number} of {len(order)}", flush=True)


def recall_of_all(detector: Detector, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Return the recall of the RPN on every image, of Selective Search on the cached ones, and of the RPN on these."""
    propose = rpn(detector)
    ours = {i: best_overlaps(propose(dataset.load(i)), dataset, i) for i in range(len(dataset))}
    result = {RPN: recalls(ours)}
    for mode, name in SEARCHES.items():
        if overlaps := Cache(folder, mode).read(dataset):
            result[name] = recalls(overlaps)
            if len(overlaps) < len(ours):
                result[name]["rpn_on_the_same"] = recalls({i: ours[i] for i in overlaps})["recall"]
    return result


def quartiles(seconds: list[float]) -> dict[str, float]:
    """Return the median and the quartiles, in milliseconds."""
    low, middle, high = np.percentile(np.array(seconds) * 1000, (25, 50, 75))
    return {"median_ms": round(middle, 2), "p25_ms": round(low, 2), "p75_ms": round(high, 2)}


STAGES = ("transform", "backbone", "rpn_head", "rpn_proposals", "detector")


class StageProbe:
    """Splits the time of a detector into ``STAGES``: its own stages, with the RPN's head taken out of the backbone."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        model = detector.model
        self._modules = timing.ModuleTimer({"backbone": model.backbone, "rpn_head": model.rpn.head}).seconds

    def seconds(self, image: np.ndarray) -> list[float]:
        """Detect in an image, and return the seconds of each of ``STAGES``."""
        (detections,) = self._detector.detect([image])
        stages = detections.timings
        return [
            stages["transform"],
            self._modules["backbone"],
            self._modules["rpn_head"],
            stages["rpn"],
            stages["roi_head"] + stages["postprocess"],
        ]


def times(weights: str, dataset: Dataset, images: int, seed: int) -> dict[str, Any]:
    """Time every method in turn on each of some images, and the stages of the detector as it serves."""
    wide, served = detector_with(weights, COUNTS[-1]), detector_with(weights, None)
    as_served = f"RPN as served, {served.config.rpn.post_nms} proposals"
    methods = {RPN: rpn(wide), as_served: rpn(served)} | {name: selective_search(m) for m, name in SEARCHES.items()}
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:images].tolist()
    for method in (methods[RPN], methods[as_served]):
        method(dataset.load(chosen[0]))  # the first call of a kind is slow
    probe = StageProbe(served)
    probe.seconds(dataset.load(chosen[0]))
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    laps: list[list[float]] = []
    for index in chosen:
        image = dataset.load(index)
        for name, method in methods.items():
            seconds[name].append(timing.time_call(partial(method, image)))
        laps.append(probe.seconds(image))
    columns = dict(zip(STAGES, map(list, zip(*laps, strict=True)), strict=True))
    shares = [(lap[2] + lap[3]) / sum(lap) for lap in laps]
    return {
        "images": len(chosen),
        "seed": seed,
        "processor": processor(),
        "threads": 1,
        "precision": served.precision,
        "methods": {name: quartiles(values) for name, values in seconds.items()},
        "as_served": served.config.rpn.post_nms,
        "stages": {name: quartiles(values) for name, values in columns.items()},
        "whole": quartiles([sum(lap) for lap in laps]),
        "rpn_share": round(statistics.median(shares), 4),
    }


def plot(recall: dict[str, Any]) -> str:
    """Plot recall against the number of proposals (logarithmic) as SVG, a panel for each IoU."""
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
        for name, method in recall.items():
            ys = [top + height * (1 - method["recall"][str(overlap)][str(k)]) for k in COUNTS]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(places, ys, strict=True))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
    for number, name in enumerate(recall):
        x = 50 + number * 215
        parts.append(f'<rect x="{x}" y="278" width="12" height="12" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 18}" y="289">{name}</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="680" height="300" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def page(result: dict[str, Any]) -> str:
    """Return docs/proposals.md."""
    about, recall = result["about"], result["recall"]
    lines = [
        "# Proposals: the RPN against Selective Search",
        "",
        "Written by `python -m benchmarks.quality.proposals --data ../shared/data/voc20` (`--help` names the other "
        "commands) from [`proposals.json`](../benchmarks/results/proposals.json); do not edit by hand.",
        "",
        f"Recall of voc20/test's counted boxes by the first k proposals. RPN: `{about['weights']}` (SHA-256 "
        f"`{about['sha256'][:8]}…`) in fp32; Selective Search: OpenCV {about['opencv']}, defaults, its own order of "
        "proposals.",
        "",
        "![recall against the number of proposals](proposals.svg)",
        "",
        "| method | images (boxes) | IoU | " + " | ".join(map(str, COUNTS)) + " |",
        "|---|---|---|" + "---|" * len(COUNTS),
    ]

    def row(name: str, count: str, overlap: float, values: dict[str, float]) -> str:
        return f"| {name} | {count} | {overlap} | " + " | ".join(f"{values[str(k)]:.3f}" for k in COUNTS) + " |"

    for name, method in recall.items():
        count = f"{method['images']:,} ({method['boxes']:,})"
        for overlap in OVERLAPS:
            lines.append(row(name, count, overlap, method["recall"][str(overlap)]))
        for overlap in OVERLAPS if "rpn_on_the_same" in method else ():
            lines.append(row("RPN, on these alone", count, overlap, method["rpn_on_the_same"][str(overlap)]))
    lines += [
        "",
        f"The bundled RPN serves {about['as_served']} proposals an image. For these figures it keeps 1,000 candidates "
        "a level and 1,000 proposals in all; nothing else is changed. It was trained on voc20/train, on these twenty "
        "classes; Selective Search knows no classes and no training. EdgeBoxes is missing: OpenCV has its code, but "
        "not the trained edge model that it needs, and no package is known that brings one.",
        "",
        "## Time",
        "",
    ]
    if "times" not in result:
        lines.append("Not yet measured: `python -m benchmarks.quality.proposals --data ../shared/data/voc20 --times`.")
        return "\n".join(lines) + "\n"
    timed = result["times"]
    lines += [
        f"`--times`: {timed['images']} images (seed {timed['seed']}), the methods in turn on each; "
        f"{timed['processor']}, one thread, {timed['precision']}.",
        "",
        "| method | ms per image, median (quartiles) |",
        "|---|---|",
        *(
            f"| {name} | {row['median_ms']:.0f} ({row['p25_ms']:.0f} to {row['p75_ms']:.0f}) |"
            for name, row in timed["methods"].items()
        ),
        "",
        "The RPN's time runs from pixels to proposals, backbone included. Selective Search leaves the detector's "
        "backbone still to do.",
        "",
        f"The detector's {timed['whole']['median_ms']:.0f} ms by stage, as it serves:",
        "",
        "| " + " | ".join(name.replace("_", " ") for name in STAGES) + " |",
        "|---|" + "---|" * (len(STAGES) - 1),
        "| " + " | ".join(f"{timed['stages'][name]['median_ms']:.1f} ms" for name in STAGES) + " |",
        "",
        f"The RPN's own part, its head and its proposals, is {timed['rpn_share']:.0%} of it (median over images). In "
        "the paper it is 10 of 198 ms, 5 %, on a K40 with VGG-16 (Table 5): the lighter the backbone, the larger the "
        "share.",
    ]
    return "\n".join(lines) + "\n"


def write(part: str, value: dict[str, Any], about: dict[str, Any]) -> None:
    """Put one part into the result, and write the page from the whole."""
    result = results.load("proposals")
    result |= {"about": about, part: value, f"{part}_commit": commit()}
    results.save("proposals", result)
    if "recall" in result:
        (ROOT / "docs" / "proposals.svg").write_text(plot(result["recall"]))
        (ROOT / "docs" / "proposals.md").write_text(page(result))
        print(page(result))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--search", choices=tuple(SEARCHES), help="fill the cache with Selective Search's overlaps")
    parser.add_argument("--times", action="store_true", help="measure times, and nothing else")
    parser.add_argument("--images", type=int, help="for --search: the first so many; for --times: how many [30]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "proposals", help="not to be committed")
    options = parser.parse_args()
    configure_malloc()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    dataset = load_dataset(options.data, "test", on_bad_box="skip")
    if options.search:
        cache = Cache(options.cache, options.search)
        cache.fill(options.search, dataset, options.images or len(dataset), options.seed)
        return
    served = detector_with(options.weights, None)
    about = {
        "data": "voc20/test",
        "weights": served.checkpoint.name,
        "sha256": served.checkpoint.sha256,
        "as_served": served.config.rpn.post_nms,
        "torch": torch.__version__,
        "opencv": cv2.__version__,
    }
    if options.times:
        write("times", times(options.weights, dataset, options.images or 30, options.seed), about)
    else:
        detector = detector_with(options.weights, COUNTS[-1])
        write("recall", recall_of_all(detector, dataset, options.cache), about)


if __name__ == "__main__":
    main()
