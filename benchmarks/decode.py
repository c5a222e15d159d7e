"""From a JPEG's bytes to pixels: how fast, with which effect on what is found, and whether broken files cost memory.

    python -m benchmarks.decode                      # speed
    python -m benchmarks.decode --drift 200          # decoded small against decoded in full; needs ../shared/data/voc20
    python -m benchmarks.decode --malformed 20000    # resident memory over that many broken files

Decoding uses no device. Drift: photographs of voc20/test laid out 2 x 2 and 4 x 4, saved as one JPEG each, so that the
labels are known and the pictures are two and four times the canvas; LITE in float32 looks at each decoded in full and
as the service would. Malformed: the hostile corpus of the tests, over and over, each time with other bits turned over.
Parts that are not run keep their results.
"""

from __future__ import annotations

import argparse
import gc
import io
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks import report
from service.errors import ServiceError
from service.inference.decoding import decode_image, prepare_pillow

DATA = report.ROOT.parent / "shared/data/voc20"
SIZES = ((640, 480), (1920, 1080), (4032, 3024))
MAX_PIXELS = 64_000_000
WAYS = {"full": "in full", "small": "small", "moved": "in full, moved by a pixel"}
CORPUS_PIXELS = 1_000_000  # the corpus has pictures of 400 megapixels, to be refused
MIB = 2**20


# --------------------------------------------------------------------------------------------------------------- speed
def photograph(width: int, height: int) -> bytes:
    """A JPEG with detail at every scale: the page's cat, and noise as of a sensor."""
    cat = Image.open(report.ROOT / "service/web/examples/chelsea.jpg").convert("RGB").resize((width, height))
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 1))
    file = io.BytesIO()
    Image.fromarray((np.asarray(cat) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def ways() -> dict[str, Callable[[bytes], Any]]:
    """Every way to an array uint8 [h, w, 3] by name; OpenCV where it is installed."""
    from torchvision.io import ImageReadMode, decode_jpeg

    from model.config import LITE, RESNET50_FPN
    from model.runtime.buckets import Buckets

    lite, resnet = Buckets(LITE.transform), Buckets(RESNET50_FPN.transform)
    found: dict[str, Callable[[bytes], Any]] = {
        "in full (Pillow, with our checks)": lambda data: decode_image(data, max_pixels=MAX_PIXELS),
        "for LITE's canvas": lambda data: decode_image(data, max_pixels=MAX_PIXELS, canvas_for=lite.canvas_for),
        "for RESNET50_FPN's canvas": lambda data: decode_image(
            data, max_pixels=MAX_PIXELS, canvas_for=resnet.canvas_for
        ),
        "Pillow as usual, np.array(open().convert('RGB'))": lambda data: np.array(
            Image.open(io.BytesIO(data)).convert("RGB")
        ),
        "torchvision.io.decode_jpeg": lambda data: decode_jpeg(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB
        ),
    }
    try:
        import cv2
    except ImportError:
        return found
    return found | {
        "OpenCV imdecode, to RGB": lambda data: cv2.cvtColor(
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
    }


def speed(rounds: int) -> dict[str, Any]:
    """Seconds of each way on each size, by turns."""
    bodies = {f"{width} x {height}": photograph(width, height) for width, height in SIZES}
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    offered = list(ways().items())
    for number in range(-1, rounds):
        for name, way in offered if number % 2 else reversed(offered):
            for size, body in bodies.items():
                begun = time.perf_counter()
                way(body)
                if number >= 0:
                    seconds[name, size].append(time.perf_counter() - begun)
    rows = [
        {"way": name, "seconds": {size: report.spread(seconds[name, size]) for size in bodies}} for name, _ in offered
    ]
    return {
        "machine": report.environment("cpu", "opencv-contrib-python-headless"),
        "rounds": rounds,
        "bytes": {size: len(body) for size, body in bodies.items()},
        "rows": rows,
    }


# --------------------------------------------------------------------------------------------------------------- drift
def mosaics(side: int, count: int) -> tuple[Any, list[bytes]]:
    """A data set of ``count`` pictures of ``side`` x ``side`` photographs with their labels, and the JPEGs."""
    from model.training.data import load_dataset
    from model.training.samples import Sample

    dataset = load_dataset(DATA, "test")
    samples, files = [], []
    for number in range(min(count, len(dataset) // side**2)):
        canvas = Image.new("RGB", (side * 384, side * 384), (124, 116, 104))
        parts = []
        for place in range(side**2):
            index = number * side**2 + place
            corner = np.array([place % side * 384, place // side * 384] * 2, dtype=np.float32)
            canvas.paste(Image.fromarray(dataset.load(index)), (int(corner[0]), int(corner[1])))
            parts.append((dataset.samples[index], corner))
        file = io.BytesIO()
        canvas.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
        samples.append(
            Sample(
                path=Path(f"mosaic-{number}"),
                image_id=number,
                width=canvas.width,
                height=canvas.height,
                boxes=np.concatenate([sample.boxes + corner for sample, corner in parts]),
                class_ids=np.concatenate([sample.class_ids for sample, _ in parts]),
                ignore=np.concatenate([sample.ignore for sample, _ in parts]),
                areas=np.concatenate([sample.areas for sample, _ in parts]),
            )
        )
    return replace(dataset, samples=tuple(samples)), files


class Partners:
    """How far the detections of 0.5 and above of one way are from their likeliest partners of another."""

    def __init__(self) -> None:
        self.overlaps: list[float] = []
        self.scores: list[float] = []
        self.lost = 0

    def add(self, right: Any, other: Any) -> None:
        """One picture's two answers."""
        from model.boxes import iou

        for i in torch.nonzero(right.scores >= 0.5).flatten().tolist():
            near = iou(right.boxes[i : i + 1], other.boxes)[0] * (other.class_ids == right.class_ids[i])
            if not len(near) or float(near.max()) < 0.5:
                self.lost += 1
                continue
            best = int(near.argmax())
            self.overlaps.append(float(near[best]))
            self.scores.append(abs(float(other.scores[best] - right.scores[i])))

    def summary(self) -> dict[str, float]:
        """For results."""
        return {
            "detections": len(self.overlaps) + self.lost,
            "lost": self.lost,
            "iou_median": round(float(np.median(self.overlaps)), 4),
            "iou_p05": round(float(np.quantile(self.overlaps, 0.05)), 4),
            "score_median": round(float(np.median(self.scores)), 4),
            "score_p95": round(float(np.quantile(self.scores, 0.95)), 4),
        }


def drift(count: int) -> dict[str, Any]:
    """Average precision each way, and how far the detections are apart.

    For a measure of what these distances mean: decoded in full, and moved by one pixel of the large picture.
    """
    from model.detector import Detector
    from model.evaluation.coco import WHOLE_CURVE, evaluate

    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")
    rows = []
    for side in (2, 4):
        dataset, files = mosaics(side, count)
        predictions: dict[str, list[Any]] = defaultdict(list)
        partners = {"small": Partners(), "moved": Partners()}
        pixels = ""
        for number, file in enumerate(files):
            full = decode_image(file, max_pixels=MAX_PIXELS)
            small = decode_image(file, max_pixels=MAX_PIXELS, canvas_for=detector.canvas_for).pixels
            pixels = f"{full.width} x {full.height} as {small.shape[1]} x {small.shape[0]}"
            options = replace(WHOLE_CURVE, full_size=(full.height, full.width))
            found = {}
            for way, seen in (("full", full.pixels), ("small", small), ("moved", np.roll(full.pixels, 1, axis=1))):
                (found[way],) = detector.detect([seen], options)
                predictions[way].append((number, found[way].boxes, found[way].scores, found[way].class_ids))
            for way, pairs in partners.items():
                pairs.add(found["full"], found[way])
        figures = {way: evaluate(given, dataset) for way, given in predictions.items()}
        rows += [
            {
                "pixels": pixels,
                "pictures": len(files),
                "way": way,
                "ap": round(figure.ap, 4),
                "ap50": round(figure.ap50, 4),
                "partners": partners[way].summary() if way in partners else None,
            }
            for way, figure in figures.items()
        ]
    return {"machine": report.environment("cpu"), "weights": "lite-voc20", "precision": "fp32", "rows": rows}


# ------------------------------------------------------------------------------------------------------------ malformed
def broken(count: int) -> Iterator[bytes]:
    """The corpus as it is, and again with other bits of each file turned over; what unpacks to much comes once."""
    from tests.service import corpus

    heavy = {name for name, _ in corpus.bombs()}
    files = list(corpus.everything())
    dice = random.Random(9383)
    done = 0
    while True:
        for name, data in files:
            if done and name in heavy:
                continue
            if done >= len(files) and data:
                changed = bytearray(data)
                for _ in range(dice.randint(1, 4)):
                    changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
                data = bytes(changed)
            yield data
            done += 1
            if done == count:
                return


def malformed(count: int) -> dict[str, Any]:
    """Resident memory while ``count`` broken files are decoded, both in full and for a canvas."""
    process, outcomes = psutil.Process(), defaultdict(int)
    memory, begun = [], time.perf_counter()
    for number, data in enumerate(broken(count)):
        for canvas in (None, lambda height, width: (-(-height // 4), -(-width // 4))):
            try:
                decode_image(data, max_pixels=CORPUS_PIXELS, canvas_for=canvas)
                outcomes["decoded"] += 1
            except ServiceError as error:
                outcomes[type(error).__name__] += 1
        if number % max(1, count // 40) == 0:
            gc.collect()
            memory.append((number, process.memory_info().rss / MIB))
    gc.collect()
    memory.append((count, process.memory_info().rss / MIB))
    second, last = (
        [mib for number, mib in memory if low * count <= number <= high * count]
        for low, high in ((0.25, 0.5), (0.75, 1))
    )
    return {
        "machine": report.environment("cpu"),
        "files": count,
        "seconds": round(time.perf_counter() - begun),
        "outcomes": dict(sorted(outcomes.items())),
        "memory_mib": [(number, round(mib, 1)) for number, mib in memory],
        "second_quarter_mean_mib": round(float(np.mean(second)), 1),
        "last_quarter_mean_mib": round(float(np.mean(last)), 1),
        "growth_mib": round(float(np.mean(last) - np.mean(second)), 2),
    }


# -------------------------------------------------------------------------------------------------------------- tables
def tables(result: Mapping[str, Any]) -> list[report.Table]:
    """For the page and the terminal."""
    made = []
    if found := result.get("speed"):
        sizes = list(found["bytes"])
        made.append(
            report.Table(
                f"One JPEG on one thread, milliseconds, {found['rounds']} rounds. {report.where(found['machine'])}.",
                ("way", *(f"{size}, {found['bytes'][size] // 1024} KiB" for size in sizes)),
                [(row["way"], *(report.milliseconds(row["seconds"][size]) for size in sizes)) for row in found["rows"]],
            )
        )
    if found := result.get("drift"):
        made.append(
            report.Table(
                f"Decoded small against decoded in full: {found['weights']}, {found['precision']}, mosaics of "
                f"voc20/test. Sure: 0.5 and above in full; lost: without a partner of IoU 0.5. "
                f"Commit {found['machine']['commit']}.",
                ("pictures", "way", "AP", "AP.5", "sure, lost", "IoU: median, 5 %", "score off by: median, 95 %"),
                [
                    (
                        f"{row['pictures']} of {row['pixels']}",
                        WAYS[row["way"]],
                        f"{row['ap']:.4f}",
                        f"{row['ap50']:.4f}",
                        *(
                            (
                                f"{pairs['detections']}, {pairs['lost']}",
                                f"{pairs['iou_median']:.3f}, {pairs['iou_p05']:.3f}",
                                f"{pairs['score_median']:.3f}, {pairs['score_p95']:.3f}",
                            )
                            if (pairs := row["partners"])
                            else ("", "", "")
                        ),
                    )
                    for row in found["rows"]
                ],
            )
        )
    if found := result.get("malformed"):
        outcomes = ", ".join(f"{count} {name}" for name, count in found["outcomes"].items())
        made.append(
            report.Table(
                f"{found['files']} broken files, each decoded in full and for a canvas, in {found['seconds']} s: "
                f"{outcomes}. Commit {found['machine']['commit']}.",
                ("resident memory", "MiB"),
                [
                    ("before", f"{found['memory_mib'][0][1]}"),
                    ("mean of the second quarter", f"{found['second_quarter_mean_mib']}"),
                    ("mean of the last quarter", f"{found['last_quarter_mean_mib']}"),
                    ("growth between them", f"{found['growth_mib']:+}"),
                ],
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--drift", type=int, metavar="PICTURES")
    parser.add_argument("--malformed", type=int, metavar="FILES")
    parser.add_argument("--device", default="cpu", choices=["cpu"], help="nothing here runs elsewhere")
    arguments = parser.parse_args()
    prepare_pillow()
    result = report.load("decode")
    if arguments.drift:
        result["drift"] = drift(arguments.drift)
    elif arguments.malformed:
        result["malformed"] = malformed(arguments.malformed)
    else:
        result["speed"] = speed(arguments.rounds)
    report.save("decode", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
