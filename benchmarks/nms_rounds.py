"""How many rounds the GPU's NMS needs on photographs: the iteration of ``model.nms.PairwiseNMS`` to its fixed point.

    python -m benchmarks.nms_rounds --data FOLDER_OF_IMAGES

It needs no GPU: on a CPU, where torchvision's operator does the NMS, the boxes that it gets also go through
``PairwiseNMS``, a round at a time, until one changes nothing. That one counts too. Groups are independent, so a batch
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

from benchmarks import report
from model import nms, roi_head, rpn
from model.detector import DetectOptions, Detector


def rounds(boxes: Tensor, valid: Tensor, threshold: float) -> int:
    """Rounds until one changes nothing, that one among them; boxes float32 [G, K, 4] by falling score, valid [G, K]."""
    pairs = nms.PairwiseNMS(boxes, valid, torch.full((len(boxes),), nms.exact_threshold(threshold)))
    return next(count for count in itertools.count(1) if bool(pairs.advance(1)[1]))


@contextmanager
def counted() -> Iterator[tuple[list[int], list[int]]]:
    """The rounds of the RPN's NMS and of that by class: one number each for a batch that a CPU detects in the block."""
    found: tuple[list[int], list[int]] = ([], [])

    def per_level(boxes: Tensor, valid: Tensor, scores: Tensor, sizes: Sequence[int], limit: float) -> list[Tensor]:
        levels = zip(boxes.split(list(sizes), dim=1), valid.split(list(sizes), dim=1), strict=True)
        found[0].append(max(rounds(level, alive, limit) for level, alive in levels))
        return nms.nms_per_level(boxes, valid, scores, sizes, limit)

    def grouped(boxes: Tensor, scores: Tensor, groups: Tensor, limit: float) -> Tensor:
        order = scores.sort(descending=True, stable=True).indices
        members = [boxes[order[groups[order] == group]][None] for group in groups.unique()]
        found[1].append(max((rounds(group, torch.ones(group.shape[:2]), limit) for group in members), default=0))
        return nms.grouped_nms(boxes, scores, groups, limit)

    with mock.patch.object(rpn, "nms_per_level", per_level), mock.patch.object(roi_head, "grouped_nms", grouped):
        yield found


def survey(detector: Detector, images: Sequence[np.ndarray], most: int, thresholds: Sequence[float]) -> dict[str, Any]:
    """For the RPN, and for the classes at each score threshold: how many batches need so many rounds."""
    canvases = [detector.canvas_for(*image.shape[:2]) for image in images]
    groups = [[i for i, other in enumerate(canvases) if other == canvas] for canvas in sorted(set(canvases))]
    batches = [[images[i] for i in group[at : at + most]] for group in groups for at in range(0, len(group), most)]
    found = {}
    for threshold in thresholds:
        with counted() as (levels, classes):
            for batch in batches:
                detector.detect(batch, DetectOptions(score_threshold=threshold))
        found["RPN, by level"] = {"at_first": nms.LEVEL_ITERATIONS, "rounds": levels}
        found[f"classes, scores above {threshold:g}"] = {"at_first": nms.CLASS_ITERATIONS, "rounds": classes}
    return found


def table(found: Mapping[str, Any], title: str) -> report.Table:
    """Of what ``survey`` found; "at first": the rounds before a GPU's NMS reads whether it has converged."""
    head, rows = ("NMS", "at first", "batches", "least", "median", "most", "batches by rounds"), []
    for name, one in found.items():
        values = one["rounds"]
        counts = ", ".join(f"{number}: {count}" for number, count in sorted(Counter(values).items()))
        numbers = (one["at_first"], len(values), min(values), f"{statistics.median(values):g}", max(values))
        rows.append((name, *map(str, numbers), counts))
    return report.Table(title, head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--images", type=int, default=60, help="the first so many by name, in batches of four")
    given = parser.parse_args()
    machine = report.environment("cpu")
    detector = Detector.from_checkpoint(given.weights, device="cpu", precision="fp32")
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(given.data.glob("*.jpg"))[: given.images]]
    found = survey(detector, images, 4, sorted({detector.defaults.score_threshold or 0.0, 0.05}, reverse=True))
    table(found, f"{given.weights}, {len(images)} images in batches of at most four.").print()
    report.save("nms-rounds", {"machine": machine, "weights": given.weights, "images": len(images), "found": found})


if __name__ == "__main__":
    main()
