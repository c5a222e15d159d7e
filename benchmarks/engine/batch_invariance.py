"""Measure how far an image's answer depends on the batch that it is in.

    python -m benchmarks.engine.batch_invariance --mixes 300 --weights lite-voc20

Photographs (scikit-image's, cropped and mirrored) go through the detector alone, then in batches with copies of
themselves, and then in batches with others of their canvas, drawn from a seed. Floating-point sums come out a little
differently in a batch of another size: this measures by how many pixels a box moves and how often a detection appears
or disappears, in fp32 and in bf16. Writes benchmarks/results/invariance.json and a table in docs/overload.md.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from benchmarks.lib import results
from benchmarks.lib.markers import fill_file
from model.detector import Detector
from model.structures import Detections

PAGE = results.ROOT / "docs/overload.md"
MAX_BATCH = 8  # images in a batch, as FRCNN_MAX_BATCH
SAME = 0.5  # IoU above which a box of the same class is the same detection
# Height and width; each shape twice or more, for mixes of different images on one canvas.
SHAPES = ((300, 400), (240, 320), (400, 300), (320, 240), (256, 256), (200, 200), (270, 480), (180, 320))


@dataclass
class Difference:
    """What differs between two answers to an image, over all its detections.

    pixels: the furthest that a side of a box moved, in pixels of the image. score: the most that a score changed.
    changed: detections that only one of the two answers has. images: how many answers were compared.
    """

    pixels: float = 0.0
    score: float = 0.0
    changed: int = 0
    detections: int = 0
    images: int = 0

    def __iadd__(self, other: Difference) -> Difference:
        self.pixels, self.score = max(self.pixels, other.pixels), max(self.score, other.score)
        self.changed += other.changed
        self.detections += other.detections
        self.images += other.images
        return self


def difference(alone: Detections, among: Detections) -> Difference:
    """Return how far ``among`` is from ``alone``, two answers to the same image."""
    total, left = Difference(detections=len(alone), images=1), list(range(len(among)))
    for box, score, kind in zip(alone.boxes.numpy(), alone.scores.numpy(), alone.class_ids.tolist(), strict=True):
        rivals = [i for i in left if among.class_ids[i] == kind]
        best = max(rivals, key=lambda i: _iou(box, among.boxes[i].numpy()), default=None)
        if best is None or _iou(box, among.boxes[best].numpy()) < SAME:
            total.changed += 1
            continue
        left.remove(best)
        total.pixels = max(total.pixels, float(np.abs(box - among.boxes[best].numpy()).max()))
        total.score = max(total.score, abs(float(score) - float(among.scores[best])))
    total.changed += len(left)
    return total


def photographs(shapes: Sequence[tuple[int, int]] = SHAPES, seed: int = 0) -> list[np.ndarray]:
    """Return parts of photographs, uint8 [H, W, 3] RGB, two for each of ``shapes``."""
    rng = random.Random(seed)
    sources = [Image.fromarray(make()) for make in (data.chelsea, data.astronaut, data.coffee, data.rocket)]
    images = []
    for number, (height, width) in enumerate([shape for shape in shapes for _ in range(2)]):
        source = sources[number % len(sources)]
        left, top = rng.randrange(source.width // 4), rng.randrange(source.height // 4)
        part = source.resize((width, height), Image.Resampling.BILINEAR, (left, top, source.width, source.height))
        images.append(np.asarray(part if rng.random() < 0.5 else part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    return images


def mixes(canvases: Sequence[tuple[int, int]], count: int, most: int = MAX_BATCH, seed: int = 0) -> Iterator[list[int]]:
    """Yield ``count`` batches of 2 to ``most`` images of one canvas, as indices into ``canvases``; any may repeat."""
    rng = random.Random(seed)
    for _ in range(count):
        canvas = rng.choice(canvases)
        mates = [i for i, other in enumerate(canvases) if other == canvas]
        yield rng.choices(mates, k=rng.randint(2, most))


def survey(
    detector: Detector, images: Sequence[np.ndarray], count: int, most: int = MAX_BATCH
) -> dict[str, Difference]:
    """Detect every image alone, then among copies in batches of each size, then in ``count`` mixes with others."""
    alone = [detector.detect([image])[0] for image in images]
    copies, others = Difference(), Difference()
    for number in range(len(images)):
        size = 2 + number % (most - 1)
        for among in detector.detect([images[number]] * size):
            copies += difference(alone[number], among)
    canvases = [detector.canvas_for(*image.shape[:2]) for image in images]
    for mix in mixes(canvases, count, most):
        batch = detector.detect([images[i] for i in mix])
        assert {detections.batch_size for detections in batch} == {len(mix)}
        for i, among in zip(mix, batch, strict=True):
            others += difference(alone[i], among)
    return {"among copies": copies, "among others": others}


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / max(float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared, 1e-9)


def tables(result: dict[str, Any]) -> list[results.Table]:
    """Return the table, for the terminal and for docs/overload.md."""
    rows = [
        (
            precision,
            where,
            str(d["images"]),
            str(d["detections"]),
            f"{d['pixels']:.2g}",
            f"{d['score']:.2g}",
            str(d["changed"]),
        )
        for precision, kinds in result["differences"].items()
        for where, d in kinds.items()
    ]
    columns = (
        "precision",
        "in a batch",
        "answers",
        "detections",
        "box moves, px",
        "score moves",
        "appear or disappear",
    )
    return [results.Table(f"`{result['command']}`, {result['date']}, {result['mixes']} mixes:", columns, rows)]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, default=300)
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=results.RESULTS / "invariance.json")
    arguments = parser.parse_args()
    begin, differences = time.perf_counter(), {}
    for precision in arguments.precisions:
        detector = Detector.from_checkpoint(arguments.weights, device=arguments.device, precision=precision)
        detector.warm_up()
        by_batch = survey(detector, photographs(), arguments.mixes)
        differences[precision] = {where: vars(difference) for where, difference in by_batch.items()}
    options = f"--mixes {arguments.mixes} --weights {arguments.weights} --device {arguments.device}"
    result = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.engine.batch_invariance {options}",
        "cores": os.cpu_count(),
        "mixes": arguments.mixes,
        "seconds": round(time.perf_counter() - begin),
        "differences": differences,
    }
    results.write_json(arguments.out, result)
    for table in tables(result):
        table.print()
        if arguments.out.parent == results.RESULTS:
            fill_file(PAGE, "invariance", table.markdown())


if __name__ == "__main__":
    main()
