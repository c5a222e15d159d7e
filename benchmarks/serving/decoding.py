"""Measure decoding: how fast, with which effect on the detections, and whether broken files cost memory.

    python -m benchmarks.serving.decoding                      # speed
    python -m benchmarks.serving.decoding --drift 200          # reduced against full size; needs ../shared/data/voc20
    python -m benchmarks.serving.decoding --malformed 20000    # resident memory over that many broken files

A JPEG that is larger than the network's input is decoded at a half, a quarter or an eighth of its size. Drift:
photographs of voc20/test laid out 2 x 2 and 4 x 4, saved as one JPEG each, so that the labels are known and the images
are two and four times the canvas; LITE in float32 detects in each decoded at full size and as the service decodes it.
Malformed: the tests' corpus of broken files, over and over, each time with other bits flipped. Parts that are not run
keep their results.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.lib import machine, results, timing
from benchmarks.lib.images import cat, encode
from service.errors import ServiceError
from service.images.decoding import decode_image, prepare_pillow

DATA = results.ROOT.parent / "shared/data/voc20"
SIZES = ((640, 480), (1920, 1080), (4032, 3024))
MAX_PIXELS = 64_000_000
WAYS = {"full": "full size", "small": "reduced", "moved": "full size, moved by a pixel"}
CORPUS_PIXELS = 1_000_000  # the corpus has images of 400 megapixels, to be refused
MIB = 2**20


# --------------------------------------------------------------------------------------------------------------- speed
def photograph(width: int, height: int) -> bytes:
    """Return a JPEG with detail at every scale: the cat, and noise as of a sensor."""
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 1))
    pixels = np.asarray(cat().resize((width, height))) + noise
    return encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), quality=90)


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """Return every function from a JPEG to uint8 [h, w, 3] by name; OpenCV's where it is installed."""
    from torchvision.io import ImageReadMode, decode_jpeg

    from model.presets import LITE, RESNET50_FPN
    from model.runtime.buckets import Buckets

    lite, resnet = Buckets(LITE.transform), Buckets(RESNET50_FPN.transform)
    every: dict[str, Callable[[bytes], Any]] = {
        "full size (Pillow, with our checks)": lambda data: decode_image(data, max_pixels=MAX_PIXELS),
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
        return every
    return every | {
        "OpenCV imdecode, to RGB": lambda data: cv2.cvtColor(
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
    }


def speed(rounds: int) -> dict[str, Any]:
    """Return the seconds of each decoder on each size, measured in turns."""
    bodies = {f"{width} x {height}": photograph(width, height) for width, height in SIZES}
    every = decoders()
    calls = {f"{name}/{size}": partial(every[name], body) for name in every for size, body in bodies.items()}
    for call in calls.values():  # for warming up
        call()
    seconds, errors = timing.interleave(calls, rounds)
    for error in errors.values():
        raise error
    rows = [
        {"way": name, "seconds": {size: results.spread(seconds[f"{name}/{size}"]) for size in bodies}} for name in every
    ]
    return {
        "machine": machine.describe("cpu", "opencv-contrib-python-headless"),
        "rounds": rounds,
        "bytes": {size: len(body) for size, body in bodies.items()},
        "rows": rows,
    }


# --------------------------------------------------------------------------------------------------------------- drift
def mosaics(side: int, count: int) -> tuple[Any, list[bytes]]:
    """Return a data set of ``count`` images of ``side`` x ``side`` photographs with their labels, and the JPEGs."""
    from model.data import Sample, load_dataset

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
        files.append(encode(canvas, quality=90))
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


class Pairs:
    """How far detections of 0.5 and above are from those of the same image, decoded otherwise."""

    def __init__(self) -> None:
        self.overlaps: list[float] = []
        self.scores: list[float] = []
        self.lost = 0

    def add(self, reference: Any, other: Any) -> None:
        """Add the two answers for one image."""
        from model.boxes import iou

        for i in torch.nonzero(reference.scores >= 0.5).flatten().tolist():
            near = iou(reference.boxes[i : i + 1], other.boxes)[0] * (other.class_ids == reference.class_ids[i])
            if not len(near) or float(near.max()) < 0.5:
                self.lost += 1
                continue
            best = int(near.argmax())
            self.overlaps.append(float(near[best]))
            self.scores.append(abs(float(other.scores[best] - reference.scores[i])))

    def summary(self) -> dict[str, float]:
        """Return the figures."""
        return {
            "detections": len(self.overlaps) + self.lost,
            "lost": self.lost,
            "iou_median": round(float(np.median(self.overlaps)), 4),
            "iou_p05": round(float(np.quantile(self.overlaps, 0.05)), 4),
            "score_median": round(float(np.median(self.scores)), 4),
            "score_p95": round(float(np.quantile(self.scores, 0.95)), 4),
        }


def drift(count: int) -> dict[str, Any]:
    """Return the average precision of each way to decode, and how far the detections are apart.

    To show what these distances mean, one way is the full size moved by one pixel of the large image.
    """
    from model.detector import Detector
    from model.evaluation.coco import evaluate
    from model.evaluation.predictions import WHOLE_CURVE

    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")
    rows = []
    for side in (2, 4):
        dataset, files = mosaics(side, count)
        predictions: dict[str, list[Any]] = defaultdict(list)
        pairs = {"small": Pairs(), "moved": Pairs()}
        pixels = ""
        for number, file in enumerate(files):
            full, (height, width) = decode_image(file, max_pixels=MAX_PIXELS)
            small, _ = decode_image(file, max_pixels=MAX_PIXELS, canvas_for=detector.canvas_for)
            pixels = f"{width} x {height} as {small.shape[1]} x {small.shape[0]}"
            options = replace(WHOLE_CURVE, full_size=(height, width))
            detections = {}
            for way, image in (("full", full), ("small", small), ("moved", np.roll(full, 1, axis=1))):
                (detections[way],) = detector.detect([image], options)
                boxes = detections[way]
                predictions[way].append((number, boxes.boxes, boxes.scores, boxes.class_ids))
            for way, both in pairs.items():
                both.add(detections["full"], detections[way])
        figures = {way: evaluate(predictions[way], dataset) for way in predictions}
        rows += [
            {
                "pixels": pixels,
                "images": len(files),
                "way": way,
                "ap": round(figure.ap, 4),
                "ap50": round(figure.ap50, 4),
                "pairs": pairs[way].summary() if way in pairs else None,
            }
            for way, figure in figures.items()
        ]
    return {"machine": machine.describe("cpu"), "weights": "lite-voc20", "precision": "fp32", "rows": rows}


# ------------------------------------------------------------------------------------------------------------ malformed
def broken(count: int) -> Iterator[bytes]:
    """Yield the corpus as it is, then with other bits of each file flipped; files that unpack to much come once."""
    from tests.service import corpus

    heavy = {name for name, _ in corpus.bombs()}
    files = list(corpus.all_files())
    rng = random.Random(9383)
    done = 0
    while True:
        for name, data in files:
            if done and name in heavy:
                continue
            if done >= len(files) and data:
                flipped = bytearray(data)
                for _ in range(rng.randint(1, 4)):
                    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
                data = bytes(flipped)
            yield data
            done += 1
            if done == count:
                return


def malformed(count: int) -> dict[str, Any]:
    """Return the resident memory while ``count`` broken files are decoded, both at full size and for a canvas."""
    process, outcomes = psutil.Process(), defaultdict(int)
    memory, begin = [], time.perf_counter()
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
        "machine": machine.describe("cpu"),
        "files": count,
        "seconds": round(time.perf_counter() - begin),
        "outcomes": dict(sorted(outcomes.items())),
        "memory_mib": [(number, round(mib, 1)) for number, mib in memory],
        "second_quarter_mean_mib": round(float(np.mean(second)), 1),
        "last_quarter_mean_mib": round(float(np.mean(last)), 1),
        "growth_mib": round(float(np.mean(last) - np.mean(second)), 2),
    }


# -------------------------------------------------------------------------------------------------------------- tables
def tables(result: Mapping[str, Any]) -> list[results.Table]:
    """Return a table for each part that has been run."""
    every = []
    if run := result.get("speed"):
        sizes = list(run["bytes"])
        every.append(
            results.Table(
                f"One JPEG on one thread, milliseconds, {run['rounds']} rounds. {machine.sentence(run['machine'])}.",
                ("way", *(f"{size}, {run['bytes'][size] // 1024} KiB" for size in sizes)),
                [
                    (row["way"], *(results.format_milliseconds(row["seconds"][size]) for size in sizes))
                    for row in run["rows"]
                ],
            )
        )
    if run := result.get("drift"):
        every.append(
            results.Table(
                f"Decoded at a reduced size against full size: {run['weights']}, {run['precision']}, mosaics of "
                f"voc20/test. Detections: those of 0.5 and above at full size; lost: without a box of IoU 0.5. "
                f"Commit {run['machine']['commit']}.",
                (
                    "images",
                    "decoded",
                    "AP",
                    "AP.5",
                    "detections, lost",
                    "IoU: median, 5 %",
                    "score differs by: median, 95 %",
                ),
                [
                    (
                        f"{row['images']} of {row['pixels']}",
                        WAYS[row["way"]],
                        f"{row['ap']:.4f}",
                        f"{row['ap50']:.4f}",
                        *(
                            (
                                f"{pairs['detections']}, {pairs['lost']}",
                                f"{pairs['iou_median']:.3f}, {pairs['iou_p05']:.3f}",
                                f"{pairs['score_median']:.3f}, {pairs['score_p95']:.3f}",
                            )
                            if (pairs := row["pairs"])
                            else ("", "", "")
                        ),
                    )
                    for row in run["rows"]
                ],
            )
        )
    if run := result.get("malformed"):
        outcomes = ", ".join(f"{count} {name}" for name, count in run["outcomes"].items())
        every.append(
            results.Table(
                f"{run['files']} broken files, each decoded at full size and for a canvas, in {run['seconds']} s: "
                f"{outcomes}. Commit {run['machine']['commit']}.",
                ("resident memory", "MiB"),
                [
                    ("before", f"{run['memory_mib'][0][1]}"),
                    ("mean of the second quarter", f"{run['second_quarter_mean_mib']}"),
                    ("mean of the last quarter", f"{run['last_quarter_mean_mib']}"),
                    ("growth between them", f"{run['growth_mib']:+}"),
                ],
            )
        )
    return every


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--drift", type=int, metavar="IMAGES")
    parser.add_argument("--malformed", type=int, metavar="FILES")
    arguments = parser.parse_args()
    prepare_pillow()
    result = results.load("decode")
    if arguments.drift:
        result["drift"] = drift(arguments.drift)
    elif arguments.malformed:
        result["malformed"] = malformed(arguments.malformed)
    else:
        result["speed"] = speed(arguments.rounds)
    results.save("decode", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
