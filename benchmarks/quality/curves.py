"""Draw the model card's plots: the training of the bundled weights, and the quality of their scores.

    python -m benchmarks.quality.curves [LOG ...]

Draws docs/images/training.svg from the logs of one run after the other, each a run's log.jsonl, and keeps them in
benchmarks/results/lite-voc20-training.jsonl; without any, from that file. ``benchmarks.quality.card`` draws the rest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from benchmarks.lib.results import RESULTS, ROOT
from model.evaluation.operating_points import (
    OperatingPoint,
    PrecisionRecallCurve,
    precision_recall_curve,
    reliability_bins,
)

LOG = RESULTS / "lite-voc20-training.jsonl"
LOSSES = {
    "objectness": "RPN: objectness",
    "rpn_box": "RPN: boxes",
    "classes": "detector: classes",
    "roi_box": "detector: boxes",
}
STYLE = {"svg.hashsalt": "frcnn", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def runs(logs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the lines of one run after the other, with ``run`` from 1 and ``total_epoch`` through all.

    A run that went on from a checkpoint repeats steps in its log: the later line is the one that counts.
    """
    lines: list[dict[str, Any]] = []
    before = 0.0
    for number, log in enumerate(logs, start=1):
        steps = {line["step"]: line for line in log}
        for _, line in sorted(steps.items()):
            lines.append(line | {"run": number, "total_epoch": round(before + line["epoch"], 3)})
        before = lines[-1]["total_epoch"] if lines else 0.0
    return lines


def training(lines: list[dict[str, Any]], file: Path) -> None:
    """Plot the four losses by epoch; a grey line where a run ends and the next begins."""
    mpl.rcParams.update(STYLE)
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    epochs = [line.get("total_epoch", line["epoch"]) for line in lines]
    for key, title in LOSSES.items():
        axes.plot(epochs, [line[key] for line in lines], label=title, linewidth=1.4)
    for place in range(1, len(lines)):
        if lines[place].get("run", 1) != lines[place - 1].get("run", 1):
            axes.axvline(epochs[place - 1], color="0.75", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss, mean since the line before")
    axes.legend(frameon=False, ncols=2)
    axes.grid(alpha=0.25)
    _save(figure, file)


def scores(
    confidence: NDArray[np.float64],
    right: NDArray[np.bool_],
    boxes: int,
    served: OperatingPoint,
    chosen: float,
    file: Path,
) -> None:
    """Plot precision against recall, F1 by threshold, and reliability, over all judged detections.

    confidence, right: from ``judge_detections``. boxes: how many count. served: the default
    threshold on these images. chosen: the threshold of validation's best F1.
    """
    mpl.rcParams.update(STYLE)
    figure, (left, middle, last) = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
    line = _thinned(precision_recall_curve(confidence, right, boxes))
    left.plot(line.recall, line.precision, linewidth=1.4)
    left.plot(served.recall, served.precision, "o", color="C3", label=f"score > {served.threshold:.2f}")
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="All classes, IoU 0.5")
    left.legend(frameon=False, loc="lower left")
    middle.plot(line.lowest, line.f1, linewidth=1.4)
    middle.plot(served.threshold, served.f1, "o", color="C3", label=f"default, {served.threshold:.2f}")
    middle.axvline(chosen, color="0.6", linewidth=0.9, linestyle="--", label=f"validation's best, {chosen:.2f}")
    middle.set(xlabel="score threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1), title="F1 by threshold")
    middle.legend(frameon=False, loc="lower center")
    parts = [part for part in reliability_bins(confidence, right) if part.precision is not None]
    last.plot([0, 1], [0, 1], color="0.7", linewidth=0.9)
    last.bar([part.low for part in parts], [part.precision for part in parts], 0.1, align="edge", alpha=0.35)
    last.plot([part.mean_score for part in parts], [part.precision for part in parts], "o-", markersize=3)
    last.set(xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1), title="Reliability")
    _save(figure, file)


def _thinned(line: PrecisionRecallCurve) -> PrecisionRecallCurve:
    """Keep only points that differ visibly: tens of thousands of detections would make megabytes of SVG."""
    by_recall = np.searchsorted(line.recall, np.linspace(0, line.recall[-1], 400))
    by_score = np.searchsorted(-line.lowest, -np.linspace(line.lowest[0], line.lowest[-1], 200))
    kept = np.unique(np.concatenate((by_recall, by_score)))
    return PrecisionRecallCurve(*(part[kept] for part in (line.lowest, line.precision, line.recall, line.f1)))


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, facecolor="white", metadata={"Date": None})
    plt.close(figure)


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.strip()]


def main() -> None:
    """Run the command."""
    if logs := [Path(name) for name in sys.argv[1:]]:
        lines = runs([_read(file) for file in logs])
        LOG.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = _read(LOG)
    training(lines, ROOT / "docs/images/training.svg")
    first, last = lines[0], lines[-1]
    for key, title in LOSSES.items():
        print(f"{title:20} {first[key]:.4f} at step {first['step']}, {last[key]:.4f} at step {last['step']}")


if __name__ == "__main__":
    main()
