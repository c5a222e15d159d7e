"""The paper's claim, measured: are learned proposals better than Selective Search's, and nearly free? (P 3.4, Table 5.)

    pip install -e '.[train,bench]'
    python -m benchmarks.proposals --data ../shared/data/voc20 --search fast       # once: slow, resumable
    python -m benchmarks.proposals --data ../shared/data/voc20 --search quality    # the same, and four times as slow
    python -m benchmarks.proposals --data ../shared/data/voc20                     # the RPN's recall
    python -m benchmarks.proposals --data ../shared/data/voc20 --times             # on a quiet machine

Recall is of the boxes of ``test`` that count, by the first k proposals. It does not depend on the machine, and
Selective Search's not on the weights either: it is computed once and kept in ``--cache``, pictures in a seeded order,
so that however far it has come is a fair sample. Times are taken with one thread, the methods in turn at every picture.
Each of the last two writes its part of benchmarks/results/proposals.json, and docs/proposals.md and .svg from both.

EdgeBoxes is left out. OpenCV has its code, but not the trained edge model (structured forests) that it needs, and that
is in no package that we found.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.report import commit, processor
from model import boxes as box_ops
from model.checkpoint import load_into, read_state, resolve, with_rank_of
from model.detector import Detector, find_preset
from model.faster_rcnn import FasterRCNN, RPNOutput
from model.roi_head import stack_regions
from model.runtime.malloc import configure_malloc
from model.training.data import Dataset, load_dataset

COUNTS = (10, 50, 100, 300, 1000)
OVERLAPS = (0.5, 0.7)
RPN = "RPN (ours)"
SEARCHES = {"fast": "Selective Search, fast", "quality": "Selective Search, quality"}
COLOURS = {RPN: "#c0392b", SEARCHES["fast"]: "#2471a3", SEARCHES["quality"]: "#7d8b99"}
ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "proposals.json"

Propose = Callable[[np.ndarray], np.ndarray]


def detector_with(weights: str, proposals: int | None) -> Detector:
    """The checkpoint's detector; with ``proposals``, its RPN keeps so many of each level, and so many in all."""
    checkpoint = resolve(weights)
    state = read_state(checkpoint)
    config = with_rank_of(find_preset(checkpoint.preset or "LITE").with_classes(len(checkpoint.classes)), state)
    if proposals is not None:
        config = replace(config, rpn=replace(config.rpn, pre_nms=proposals, post_nms=proposals))
    model = FasterRCNN(config)
    load_into(model, state)
    return Detector(model, checkpoint, device="cpu", precision="fp32")


def rpn(detector: Detector) -> Propose:
    """Pictures [H, W, 3] RGB to proposals [R, 4], best first: all from pixels on, but no detector."""

    @torch.inference_mode()
    def propose(picture: np.ndarray) -> np.ndarray:
        batch = detector.transform([picture], detector.canvas_for(*picture.shape[:2]), detector.device)
        dense = detector.model.run_convolutions(batch.pixels.to(detector.dtype))
        (found,) = detector.model.rpn.select_proposals(detector.model.select_candidates(dense, batch))
        return box_ops.rescale(found.boxes, batch.sizes[0], batch.original_sizes[0]).numpy()

    return propose


def selective_search(mode: str) -> Propose:
    """OpenCV's Selective Search (Uijlings et al. 2013), its proposals in the order that it gives them."""

    def propose(picture: np.ndarray) -> np.ndarray:
        cv2.setRNGSeed(0)  # its ranks are partly drawn at random
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(picture[:, :, ::-1]))
        if mode == "quality":
            search.switchToSelectiveSearchQuality()
        else:
            search.switchToSelectiveSearchFast()
        found = search.process().astype(np.float32)[: COUNTS[-1]]
        found[:, 2:] += found[:, :2]
        return found

    return propose


def best_overlaps(proposals: np.ndarray, dataset: Dataset, index: int) -> np.ndarray:
    """For each count k and box that counts the best IoU with the first k proposals: [counts, G]."""
    sample = dataset.samples[index]
    truth = torch.from_numpy(sample.boxes[~sample.ignore])
    overlaps = box_ops.iou(truth, torch.from_numpy(proposals)).numpy()
    return np.stack([overlaps[:, :count].max(axis=1, initial=0) for count in COUNTS])


def recalls(best: dict[int, np.ndarray]) -> dict[str, Any]:
    """Recall by IoU and count, of best overlaps [counts, G] by picture."""
    every = np.concatenate([best[index] for index in sorted(best)], axis=1)
    return {
        "pictures": len(best),
        "boxes": every.shape[1],
        "recall": {
            str(overlap): {
                str(k): round(float((row >= overlap).mean()), 4) for k, row in zip(COUNTS, every, strict=True)
            }
            for overlap in OVERLAPS
        },
    }


class Cache:
    """Selective Search's best overlaps by picture: a json a line, so that a run that stopped goes on."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.path = folder / f"selective-search-{mode}.jsonl"

    def read(self, dataset: Dataset) -> dict[int, np.ndarray]:
        """What is there, by the picture's position; of pictures that this data set has, by file name."""
        position = {sample.path.name: i for i, sample in enumerate(dataset.samples)}
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        rows = (json.loads(line) for line in lines)
        return {position[row["picture"]]: np.array(row["best"]).reshape(len(COUNTS), -1) for row in rows}

    def fill(self, mode: str, dataset: Dataset, pictures: int, seed: int) -> None:
        """Compute what is missing of the first ``pictures`` in the seeded order."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        done, propose = self.read(dataset), selective_search(mode)
        order = np.random.default_rng(seed).permutation(len(dataset))[:pictures].tolist()
        with self.path.open("a") as file:
            for number, index in enumerate(order, start=1):
                if index in done:
                    continue
                best = best_overlaps(propose(dataset.load(index)), dataset, index)
                row = {"picture": dataset.samples[index].path.name, "best": best.round(5).tolist()}
                file.write(json.dumps(row) + "\n")
                file.flush()
                if number % 50 == 0:
                    print(f"{SEARCHES[mode]}: {number} of {len(order)}", flush=True)


def recall_of_all(detector: Detector, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """The RPN over every picture, Selective Search as far as it is cached, and the RPN on the same pictures as it."""
    propose = rpn(detector)
    ours = {i: best_overlaps(propose(dataset.load(i)), dataset, i) for i in range(len(dataset))}
    result = {RPN: recalls(ours)}
    for mode, name in SEARCHES.items():
        if theirs := Cache(folder, mode).read(dataset):
            result[name] = recalls(theirs)
            if len(theirs) < len(ours):
                result[name]["rpn_on_the_same"] = recalls({i: ours[i] for i in theirs})["recall"]
    return result


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    low, middle, high = np.percentile(np.array(seconds) * 1000, (25, 50, 75))
    return {"median_ms": round(middle, 2), "p25_ms": round(low, 2), "p75_ms": round(high, 2)}


STAGES = ("transform", "backbone", "rpn_head", "rpn_proposals", "detector")


@torch.inference_mode()
def stages(detector: Detector, picture: np.ndarray) -> list[float]:
    """Seconds of each of ``STAGES``. The RPN's own are its head and its proposals; the maps are shared."""
    model, options, clock = detector.model, detector.defaults, [time.perf_counter()]
    batch = detector.transform([picture], detector.canvas_for(*picture.shape[:2]), detector.device)
    clock.append(time.perf_counter())
    maps = model.backbone(batch.pixels.to(detector.dtype))
    clock.append(time.perf_counter())
    logits, deltas = model.rpn.head(maps)
    clock.append(time.perf_counter())
    (found,) = model.rpn.select_proposals(model.select_candidates(RPNOutput(maps, logits, deltas), batch))
    clock.append(time.perf_counter())
    height, width = batch.sizes[0].tolist()
    model.roi_heads.detections(
        *model.roi_heads(maps, stack_regions([found.boxes])),
        found.boxes,
        (height, width),
        score_threshold=options.score_threshold or 0.0,
        nms_threshold=options.nms_threshold or 0.5,
        max_detections=options.max_detections,
    )
    clock.append(time.perf_counter())
    return [end - start for start, end in itertools.pairwise(clock)]


def times(weights: str, dataset: Dataset, pictures: int, seed: int) -> dict[str, Any]:
    """Every method in turn on each of some pictures, one thread; and where the detector's time goes, as it serves."""
    wide, served = detector_with(weights, COUNTS[-1]), detector_with(weights, None)
    as_served = f"RPN as served, {served.config.rpn.post_nms} proposals"
    methods = {RPN: rpn(wide), as_served: rpn(served)} | {name: selective_search(m) for m, name in SEARCHES.items()}
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:pictures].tolist()
    for method in (methods[RPN], methods[as_served]):
        method(dataset.load(chosen[0]))  # the first call of a kind is slow
    stages(served, dataset.load(chosen[0]))
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    laps: list[list[float]] = []
    for index in chosen:
        picture = dataset.load(index)
        for name, method in methods.items():
            start = time.perf_counter()
            method(picture)
            seconds[name].append(time.perf_counter() - start)
        laps.append(stages(served, picture))
    columns = dict(zip(STAGES, map(list, zip(*laps, strict=True)), strict=True))
    shares = [(lap[2] + lap[3]) / sum(lap) for lap in laps]
    return {
        "pictures": len(chosen),
        "seed": seed,
        "processor": processor(),
        "threads": 1,
        "precision": served.precision,
        "methods": {name: spread(values) for name, values in seconds.items()},
        "as_served": served.config.rpn.post_nms,
        "stages": {name: spread(values) for name, values in columns.items()},
        "whole": spread([sum(lap) for lap in laps]),
        "rpn_share": round(statistics.median(shares), 4),
    }


def plot(recall: dict[str, Any]) -> str:
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
    """docs/proposals.md: made of the figures that there are, so that the two cannot differ."""
    about, recall = result["about"], result["recall"]
    lines = [
        "# Proposals: the RPN against Selective Search",
        "",
        "Written by `python -m benchmarks.proposals --data ../shared/data/voc20` (its first lines name the other "
        "commands) from [`proposals.json`](../benchmarks/results/proposals.json); do not edit by hand.",
        "",
        f"Recall of voc20/test's counted boxes by the first k proposals. RPN: `{about['weights']}` (SHA-256 "
        f"`{about['sha256'][:8]}…`) in fp32; Selective Search: OpenCV {about['opencv']}, defaults, its own order of "
        "proposals.",
        "",
        "![recall against the number of proposals](proposals.svg)",
        "",
        "| method | pictures (boxes) | IoU | " + " | ".join(map(str, COUNTS)) + " |",
        "|---|---|---|" + "---|" * len(COUNTS),
    ]

    def row(name: str, count: str, overlap: float, values: dict[str, float]) -> str:
        return f"| {name} | {count} | {overlap} | " + " | ".join(f"{values[str(k)]:.3f}" for k in COUNTS) + " |"

    for name, method in recall.items():
        count = f"{method['pictures']:,} ({method['boxes']:,})"
        for overlap in OVERLAPS:
            lines.append(row(name, count, overlap, method["recall"][str(overlap)]))
        for overlap in OVERLAPS if "rpn_on_the_same" in method else ():
            lines.append(row("RPN, on these alone", count, overlap, method["rpn_on_the_same"][str(overlap)]))
    lines += [
        "",
        f"The bundled RPN serves {about['as_served']} proposals a picture. For these figures it keeps 1,000 candidates "
        "a level and 1,000 proposals in all; nothing else is changed. It was trained on voc20/train, on these twenty "
        "classes; Selective Search knows no classes and no training. EdgeBoxes is missing: OpenCV has its code, but "
        "not the trained edge model that it needs, and we found no package that brings one.",
        "",
        "## Time",
        "",
    ]
    if "times" not in result:
        lines.append("Not yet measured: `python -m benchmarks.proposals --data ../shared/data/voc20 --times`.")
        return "\n".join(lines) + "\n"
    timed = result["times"]
    lines += [
        f"`--times`: {timed['pictures']} pictures (seed {timed['seed']}), the methods in turn on each; "
        f"{timed['processor']}, one thread, {timed['precision']}.",
        "",
        "| method | ms a picture, median (quartiles) |",
        "|---|---|",
        *(
            f"| {name} | {row['median_ms']:.0f} ({row['p25_ms']:.0f} to {row['p75_ms']:.0f}) |"
            for name, row in timed["methods"].items()
        ),
        "",
        "The RPN's time runs from pixels to proposals, backbone included. Selective Search leaves the detector's "
        "backbone still to do.",
        "",
        f"Where the detector's {timed['whole']['median_ms']:.0f} ms go, as it serves:",
        "",
        "| " + " | ".join(name.replace("_", " ") for name in STAGES) + " |",
        "|---|" + "---|" * (len(STAGES) - 1),
        "| " + " | ".join(f"{timed['stages'][name]['median_ms']:.1f} ms" for name in STAGES) + " |",
        "",
        f"The RPN's own part, its head and its proposals, is {timed['rpn_share']:.0%} of it (median over pictures). In "
        "the paper it is 10 of 198 ms, 5 %, on a K40 with VGG-16 (Table 5): the lighter the backbone, the larger the "
        "share.",
    ]
    return "\n".join(lines) + "\n"


def write(part: str, value: dict[str, Any], about: dict[str, Any]) -> None:
    """Put one part into the result, and make the page of the whole."""
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result |= {"about": about, part: value, f"{part}_commit": commit()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    if "recall" in result:
        (ROOT / "docs" / "proposals.svg").write_text(plot(result["recall"]))
        (ROOT / "docs" / "proposals.md").write_text(page(result))
        print(page(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--search", choices=tuple(SEARCHES), help="fill the cache with Selective Search's overlaps")
    parser.add_argument("--times", action="store_true", help="measure times, and nothing else")
    parser.add_argument("--pictures", type=int, help="for --search: the first so many; for --times: how many [30]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "proposals", help="not to be committed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    configure_malloc()
    cv2.setNumThreads(1)
    dataset = load_dataset(options.data, "test", on_bad_box="skip")
    if options.search:
        cache = Cache(options.cache, options.search)
        cache.fill(options.search, dataset, options.pictures or len(dataset), options.seed)
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
        write("times", times(options.weights, dataset, options.pictures or 30, options.seed), about)
    else:
        detector = detector_with(options.weights, COUNTS[-1])
        write("recall", recall_of_all(detector, dataset, options.cache), about)


if __name__ == "__main__":
    main()
