"""The bundled weights' training curves, from the log that the run wrote.

    .venv/bin/python -m benchmarks.curves

Reads benchmarks/results/lite-voc20-training.jsonl and writes docs/images/training.svg.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "benchmarks/results/lite-voc20-training.jsonl"
LOSSES = {
    "objectness": "RPN: objectness",
    "rpn_box": "RPN: boxes",
    "classes": "detector: classes",
    "roi_box": "detector: boxes",
}


def main() -> None:
    lines = [json.loads(line) for line in LOG.read_text().splitlines()]
    mpl.rcParams.update({"svg.hashsalt": "frcnn", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for key, title in LOSSES.items():
        axes.plot([line["epoch"] for line in lines], [line[key] for line in lines], label=title, linewidth=1.4)
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss, mean since the line before")
    axes.legend(frameon=False, ncols=2)
    axes.grid(alpha=0.25)
    figure.savefig(ROOT / "docs/images/training.svg", facecolor="white", metadata={"Date": None})
    first, last = lines[0], lines[-1]
    for key, title in LOSSES.items():
        print(f"{title:20} {first[key]:.4f} at step {first['step']}, {last[key]:.4f} at step {last['step']}")


if __name__ == "__main__":
    main()
