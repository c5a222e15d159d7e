"""Does a picture's answer depend on its batch mates? Alone, among copies of itself, and among others.

    python -m benchmarks.invariance --mixes 300 --weights lite-voc20

Photographs (scikit-image's, cut and turned) go through the detector alone, and then in batches of up to eight of their
canvas, drawn from a seed. Floating-point sums come out a little differently in a batch of another size: by how many
pixels a box moves, and how often a detection comes or goes, is what this measures, in fp32 and in bf16.
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks.page import fill, table
from model.detector import Detector
from model.structures import Detections

RESULTS = Path(__file__).parent / "results"
MOST = 8  # pictures in a batch, as FRCNN_MAX_BATCH
SAME = 0.5  # IoU above which a box of the same class is the same detection
# Height and width; each shape twice or more, for mixes of different pictures on one canvas.
SHAPES = ((300, 400), (240, 320), (400, 300), (320, 240), (256, 256), (200, 200), (270, 480), (180, 320))


@dataclass
class Difference:
    """Between two answers to a picture, over all its detections.

    pixels: the furthest that a side of a box moved, in pixels of the picture. score: the same. changed: detections
    that only one of the two has.
    """

    pixels: float = 0.0
    score: float = 0.0
    changed: int = 0
    detections: int = 0
    pictures: int = 0

    def __iadd__(self, other: Difference) -> Difference:
        self.pixels, self.score = max(self.pixels, other.pixels), max(self.score, other.score)
        self.changed += other.changed
        self.detections += other.detections
        self.pictures += other.pictures
        return self


def difference(alone: Detections, among: Detections) -> Difference:
    """How far ``among`` is from ``alone``, which are of the same picture."""
    found, left = Difference(detections=len(alone), pictures=1), list(range(len(among)))
    for box, score, kind in zip(alone.boxes.numpy(), alone.scores.numpy(), alone.class_ids.tolist(), strict=True):
        rivals = [i for i in left if among.class_ids[i] == kind]
        best = max(rivals, key=lambda i: _iou(box, among.boxes[i].numpy()), default=None)
        if best is None or _iou(box, among.boxes[best].numpy()) < SAME:
            found.changed += 1
            continue
        left.remove(best)
        found.pixels = max(found.pixels, float(np.abs(box - among.boxes[best].numpy()).max()))
        found.score = max(found.score, abs(float(score) - float(among.scores[best])))
    found.changed += len(left)
    return found


def photographs(shapes: Sequence[tuple[int, int]] = SHAPES, seed: int = 0) -> list[np.ndarray]:
    """Parts of photographs, uint8 [H, W, 3] RGB, two for each of ``shapes``."""
    draw = random.Random(seed)
    sources = [Image.fromarray(make()) for make in (data.chelsea, data.astronaut, data.coffee, data.rocket)]
    made = []
    for number, (height, width) in enumerate([shape for shape in shapes for _ in range(2)]):
        source = sources[number % len(sources)]
        left, top = draw.randrange(source.width // 4), draw.randrange(source.height // 4)
        part = source.resize((width, height), Image.Resampling.BILINEAR, (left, top, source.width, source.height))
        made.append(np.asarray(part if draw.random() < 0.5 else part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    return made


def mixes(canvases: Sequence[tuple[int, int]], count: int, most: int = MOST, seed: int = 0) -> Iterator[list[int]]:
    """``count`` batches of 2 to ``most`` pictures, by index into ``canvases``, each of one canvas; any may repeat."""
    draw = random.Random(seed)
    for _ in range(count):
        canvas = draw.choice(canvases)
        mates = [i for i, other in enumerate(canvases) if other == canvas]
        yield draw.choices(mates, k=draw.randint(2, most))


def survey(detector: Detector, pictures: Sequence[np.ndarray], count: int, most: int = MOST) -> dict[str, Difference]:
    """Every picture alone; then among copies, in batches of each size; then ``count`` mixes with others."""
    alone = [detector.detect([picture])[0] for picture in pictures]
    copies, others = Difference(), Difference()
    for number in range(len(pictures)):
        size = 2 + number % (most - 1)
        for among in detector.detect([pictures[number]] * size):
            copies += difference(alone[number], among)
    canvases = [detector.canvas_for(*picture.shape[:2]) for picture in pictures]
    for mix in mixes(canvases, count, most):
        found = detector.detect([pictures[i] for i in mix])
        assert {one.batch_size for one in found} == {len(mix)}
        for i, among in zip(mix, found, strict=True):
            others += difference(alone[i], among)
    return {"among copies": copies, "among others": others}


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / max(float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared, 1e-9)


def tables(result: dict[str, Any]) -> str:
    """For docs/overload.md."""
    rows = [
        (
            precision,
            where,
            str(d["pictures"]),
            str(d["detections"]),
            f"{d['pixels']:.2g}",
            f"{d['score']:.2g}",
            str(d["changed"]),
        )
        for precision, kinds in result["differences"].items()
        for where, d in kinds.items()
    ]
    head = ("precision", "compared with alone", "answers", "detections", "box moves, px", "score moves", "come or go")
    return f"`{result['command']}`, {result['date']}, {result['mixes']} mixes:\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, default=300)
    parser.add_argument("--weights", default="lite-voc20")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=RESULTS / "invariance.json")
    arguments = parser.parse_args()
    begun, differences = time.perf_counter(), {}
    for precision in arguments.precisions:
        detector = Detector.from_checkpoint(arguments.weights, device=arguments.device, precision=precision)
        detector.warm_up()
        found = survey(detector, photographs(), arguments.mixes)
        differences[precision] = {where: vars(one) for where, one in found.items()}
    options = f"--mixes {arguments.mixes} --weights {arguments.weights} --device {arguments.device}"
    result = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.invariance {options}",
        "cores": os.cpu_count(),
        "mixes": arguments.mixes,
        "seconds": round(time.perf_counter() - begun),
        "differences": differences,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))
    if arguments.out.parent == RESULTS:
        fill("invariance", tables(result))


if __name__ == "__main__":
    main()
