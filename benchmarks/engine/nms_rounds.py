"""Count the rounds that the GPU's NMS, ``model.nms.PairwiseNMS``, needs on photographs until nothing changes.

    python -m benchmarks.engine.nms_rounds --data FOLDER_OF_IMAGES

No GPU is needed: on a CPU, where torchvision's operator does the NMS, the boxes that it gets also go through
``PairwiseNMS``, round by round, until one changes nothing. That one counts too. Groups are independent, so a batch
needs as many rounds as the group that needs most. The images of a batch share a canvas.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.lib import machine, results
from model import nms, roi_head, rpn
from model.detector import DetectOptions, Detector


def rounds(boxes: Tensor, valid: Tensor, threshold: float) -> int:
    """Return the rounds until one changes nothing, that one among them.

    boxes: float32 [G, K, 4] by falling score. valid: bool or float [G, K].
    """
    pairs = nms.PairwiseNMS(boxes, valid, torch.full((len(boxes),), nms.exact_threshold(threshold)))
    return next(count for count in itertools.count(1) if bool(pairs.advance(1)[1]))


@contextmanager
def counted() -> Iterator[tuple[list[int], list[int]]]:
    """Collect the rounds of the RPN's NMS and of the NMS by class: a number each for a batch that the block detects."""
    counts: tuple[list[int], list[int]] = ([], [])

    def per_level(boxes: Tensor, valid: Tensor, scores: Tensor, sizes: Sequence[int], limit: float) -> list[Tensor]:
        levels = zip(boxes.split(list(sizes), dim=1), valid.split(list(sizes), dim=1), strict=True)
        counts[0].append(max(rounds(level, alive, limit) for level, alive in levels))
        return nms.nms_per_level(boxes, valid, scores, sizes, limit)

    def grouped(boxes: Tensor, scores: Tensor, groups: Tensor, limit: float) -> Tensor:
        order = scores.sort(descending=True, stable=True).indices
        members = [boxes[order[groups[order] == group]][None] for group in groups.unique()]
        counts[1].append(max((rounds(group, torch.ones(group.shape[:2]), limit) for group in members), default=0))
        return nms.grouped_nms(boxes, scores, groups, limit)

    with mock.patch.object(rpn, "nms_per_level", per_level), mock.patch.object(roi_head, "grouped_nms", grouped):
        yield counts


def survey(detector: Detector, images: Sequence[np.ndarray], most: int, thresholds: Sequence[float]) -> dict[str, Any]:
    """Return the rounds of each batch, for the RPN and for the classes at each score threshold."""
    canvases = [detector.canvas_for(*image.shape[:2]) for image in images]
    groups = [[i for i, other in enumerate(canvases) if other == canvas] for canvas in sorted(set(canvases))]
    batches = [[images[i] for i in group[at : at + most]] for group in groups for at in range(0, len(group), most)]
    rows = {}
    for threshold in thresholds:
        with counted() as (levels, classes):
            for batch in batches:
                detector.detect(batch, DetectOptions(score_threshold=threshold))
        rows["RPN, by level"] = {"at_first": nms.LEVEL_ITERATIONS, "rounds": levels}
        rows[f"classes, scores above {threshold:g}"] = {"at_first": nms.CLASS_ITERATIONS, "rounds": classes}
    return rows


def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return the table of a ``survey``. "before a check": rounds before a GPU's NMS reads whether it has converged."""
    columns = ("NMS", "before a check", "batches", "least", "median", "most", "batches by rounds")
    rows = []
    for name, counted_rounds in result["found"].items():
        values = counted_rounds["rounds"]
        counts = ", ".join(f"{number}: {count}" for number, count in sorted(Counter(values).items()))
        numbers = (counted_rounds["at_first"], len(values), min(values), f"{statistics.median(values):g}", max(values))
        rows.append((name, *map(str, numbers), counts))
    title = f"{result['weights']}, {result['images']} images in batches of at most four."
    return [results.Table(title, columns, rows)]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--images", type=int, default=60, help="the first so many by name, in batches of four")
    arguments = parser.parse_args()
    about = machine.describe("cpu")
    detector = Detector.from_checkpoint(arguments.weights, device="cpu", precision="fp32")
    images = [
        np.asarray(Image.open(path).convert("RGB")) for path in sorted(arguments.data.glob("*.jpg"))[: arguments.images]
    ]
    rounds_by_nms = survey(detector, images, 4, sorted({detector.defaults.score_threshold or 0.0, 0.05}, reverse=True))
    result = {"machine": about, "weights": arguments.weights, "images": len(images), "found": rounds_by_nms}
    results.save("nms-rounds", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
