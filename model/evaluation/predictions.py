"""Run a detector over a data set, through ``Detector.detect`` as the service does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.data import Dataset, Sample
from model.detector import Detector
from model.structures import Detections, DetectOptions

MAX_DETECTIONS = 100
# Average precision needs the whole curve of precision and recall, so the serving threshold would cut it short.
WHOLE_CURVE = DetectOptions(score_threshold=0.001, max_detections=MAX_DETECTIONS)

# image id, boxes [D, 4] xyxy in the image's pixels, scores [D], class ids [D]; tensors or arrays
Prediction = tuple[int | str, Any, Any, Any]


def run_detector(
    detector: Detector, dataset: Dataset, options: DetectOptions, *, batch_size: int = 8, progress: bool = True
) -> Iterator[tuple[Sample, Detections]]:
    """Yield the labels and detections of each image; images of one canvas size come together.

    progress: draw a bar on the terminal. Raises ``DataError`` for an image that cannot be decoded.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("evaluating", total=len(dataset))
        for indices in _batches(detector, dataset, batch_size):
            results = detector.detect([dataset.load(i) for i in indices], options)
            for i, detections in zip(indices, results, strict=True):
                yield dataset.samples[i], detections
            bar.advance(task, len(indices))


def predict(
    detector: Detector,
    dataset: Dataset,
    *,
    batch_size: int = 8,
    options: DetectOptions | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """Run a detector over a data set and return predictions as ``coco.evaluate`` takes them.

    options: None means ``WHOLE_CURVE``.
    """
    results = run_detector(detector, dataset, options or WHOLE_CURVE, batch_size=batch_size, progress=progress)
    return [
        (sample.image_id, detections.boxes, detections.scores, detections.class_ids) for sample, detections in results
    ]


def _batches(detector: Detector, dataset: Dataset, batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of samples that share a canvas, ``batch_size`` at a time."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, sample in enumerate(dataset.samples):
        groups[detector.canvas_for(sample.height, sample.width)].append(i)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]
