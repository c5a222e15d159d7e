"""COCO's average precision and recall, computed by the library faster-coco-eval.

COCO's rules (101-point precision, IoU .50 to .95, at most 100 detections of an image) with one difference, for images
from VOC: an ignored box is matched by plain IoU, where COCO measures overlap with a crowd by the detection's own area.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask
from rich.table import Table

from model.data import Dataset
from model.detector import Detector
from model.evaluation.predictions import MAX_DETECTIONS, Prediction, predict
from model.structures import DetectOptions

_SMALL, _LARGE, _WHOLE = 32.0**2, 96.0**2, 1e5**2  # COCO's areas, square pixels
_QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")


@dataclass(frozen=True)
class ClassResult:
    """Result of one class. boxes: those that are not ignored. ap, ap50: None where there are none."""

    name: str
    boxes: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class SizeResult:
    """Result of the boxes with an area in [low, high], square pixels of the image. ap, ap50: None where there are none.

    name: COCO's ``small``, ``medium`` and ``large``; or a quarter of the boxes, between quartiles of the data set's
    areas, which says more where images are as small as a network's canvas.
    """

    name: str
    low: float
    high: float
    boxes: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class Evaluation:
    """Average precision and recall on a data set, from 0 to 1.

    ap: mean over classes and IoU .50 to .95 of average precision. ap50, ap75: at one IoU.
    ar100: mean recall over the same, with up to 100 detections of an image.
    sizes: by area: COCO's three parts (up to 32^2, up to 96^2, above), then four quarters.
    images, boxes, ignored, detections: their numbers; boxes are those that are not ignored.
    """

    ap: float
    ap50: float
    ap75: float
    ar100: float
    classes: tuple[ClassResult, ...]
    sizes: tuple[SizeResult, ...]
    images: int
    boxes: int
    ignored: int
    detections: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; None for what does not exist."""
        return asdict(self)

    def table(self) -> Table:
        """Return a table for the terminal: a row for each class, and one for all."""
        sizes = "   ".join(f"{size.name} {_format(size.ap)}" for size in self.sizes[:3])
        table = Table(
            min_width=72,  # the caption on one line
            title=f"{self.images} images, {self.boxes} boxes ({self.ignored} more ignored)",
            caption=f"AP.75 {self.ap75:.3f}   AR@100 {self.ar100:.3f}   AP {sizes}",
        )
        table.add_column("class")
        for heading in ("boxes", "AP.5", "AP"):
            table.add_column(heading, justify="right")
        for row in self.classes:
            table.add_row(row.name, str(row.boxes), _format(row.ap50), _format(row.ap))
        table.add_section()
        table.add_row("all", str(self.boxes), _format(self.ap50), _format(self.ap), style="bold")
        return table


def evaluate(predictions: Iterable[Prediction], dataset: Dataset, *, crowd_overlap: bool = False) -> Evaluation:
    """Compare predictions with the data set's labels.

    An image without a prediction has no detections. A detection whose best unmatched box is an ignored one counts
    neither as right nor as wrong, and one ignored box may match any number of detections (as VOC's difficult objects
    do). Where a detection also overlaps a counted box enough, that one is matched first, as COCO does.

    crowd_overlap: match ignored boxes as COCO's crowds, by intersection over the detection's own area.
    Raises ``ValueError`` for an unknown or repeated image, values that are ragged or not finite, a class that is not
    the data set's, or a data set in which all boxes are ignored.
    """
    counts = np.zeros(len(dataset.classes), np.int64)
    for sample in dataset.samples:
        np.add.at(counts, sample.class_ids[~sample.ignore], 1)
    if not counts.any():
        raise ValueError("the data set has no box that counts, so there is nothing to evaluate against")
    detections = _detections(predictions, dataset)
    truth = COCO(_ground_truth(dataset))
    run = (COCOeval_faster if crowd_overlap else _PlainOverlap)(truth, truth.loadRes(detections), iouType="bbox")
    areas = np.concatenate([sample.areas[~sample.ignore] for sample in dataset.samples])
    ranges = _size_ranges(areas)
    run.params.areaRng = [[0.0, _WHOLE], *([low, high] for _, low, high in ranges)]
    run.params.areaRngLbl = ["all", *(name for name, _, _ in ranges)]
    run.evaluate()
    run.accumulate()
    # precision [T IoUs, R recalls, K classes, A areas, M cuts], recall [T, K, A, M]; -1 where a class has no boxes
    precision, recall = run.eval["precision"][..., -1], run.eval["recall"][..., -1]
    return Evaluation(
        ap=_mean(precision[:, :, :, 0]) or 0.0,
        ap50=_mean(precision[0, :, :, 0]) or 0.0,
        ap75=_mean(precision[5, :, :, 0]) or 0.0,
        ar100=_mean(recall[:, :, 0]) or 0.0,
        classes=tuple(
            ClassResult(name, int(counts[k + 1]), _mean(precision[:, :, k, 0]), _mean(precision[0, :, k, 0]))
            for k, name in enumerate(dataset.classes[1:])
        ),
        sizes=tuple(
            SizeResult(
                name,
                low,
                high,
                int(((areas >= low) & (areas <= high)).sum()),
                _mean(precision[:, :, :, a]),
                _mean(precision[0, :, :, a]),
            )
            for a, (name, low, high) in enumerate(ranges, start=1)
        ),
        images=len(dataset),
        boxes=int(counts.sum()),
        ignored=sum(int(sample.ignore.sum()) for sample in dataset.samples),
        detections=len(detections),
    )


def evaluate_detector(
    detector: Detector,
    dataset: Dataset,
    *,
    batch_size: int = 8,
    options: DetectOptions | None = None,
    crowd_overlap: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Run a detector over a data set (``predict``) and evaluate its predictions (``evaluate``)."""
    predictions = predict(detector, dataset, batch_size=batch_size, options=options, progress=progress)
    return evaluate(predictions, dataset, crowd_overlap=crowd_overlap)


class _PlainOverlap(COCOeval_faster):  # type: ignore[misc]  # the library carries no types
    """Measure overlap with ignored boxes as with all others.

    The library overwrites an ``ignore`` field with ``iscrowd``. So ignored boxes are passed as crowds, which also lets
    one of them match many detections, and only the measure of their overlap is replaced.
    """

    def computeIoU(self, imgId: int, catId: int) -> Any:
        """Return the IoU of an image's detections with its boxes of a class, [D, G]; an empty list without either."""
        truths, detections = (data.get(imgId, catId) for data in (self.gt_dataset, self.dt_dataset))
        if not truths or not detections:
            return []
        # Rows by falling score with ties in their order of input, as the library matches them afterwards.
        order = np.argsort([-row["score"] for row in detections], kind="mergesort")[: self.params.maxDets[-1]]
        return mask.iou([detections[i]["bbox"] for i in order], [row["bbox"] for row in truths], [0] * len(truths))


def _size_ranges(areas: npt.NDArray[np.float32]) -> list[tuple[str, float, float]]:
    """Return names and bounds of the ranges of area, both ends included as COCO does."""
    thirds = [("small", 0.0, _SMALL), ("medium", _SMALL, _LARGE), ("large", _LARGE, _WHOLE)]
    low, middle, high = (float(value) for value in np.quantile(areas.astype(np.float64), (0.25, 0.5, 0.75)))
    return thirds + list(zip(_QUARTERS, (0.0, low, middle, high), (low, middle, high, _WHOLE), strict=True))


def _ground_truth(dataset: Dataset) -> dict[str, Any]:
    """Convert labels to the library's form, COCO JSON as a dictionary."""
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(dataset.samples, start=1):
        rows = zip(_xywh(sample.boxes), sample.class_ids, sample.ignore, sample.areas, strict=True)
        for box, class_id, ignore, area in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # from 1: to the library 0 means "unmatched"
                    "image_id": number,
                    "category_id": int(class_id),
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": int(ignore),
                }
            )
    return {
        "images": [{"id": i, "width": s.width, "height": s.height} for i, s in enumerate(dataset.samples, start=1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(dataset.classes) if i],
    }


def _detections(predictions: Iterable[Prediction], dataset: Dataset) -> list[dict[str, Any]]:
    """Convert the 100 best predictions of each image to the library's form; raise ``ValueError`` for malformed ones."""
    number_of = {sample.image_id: number for number, sample in enumerate(dataset.samples, start=1)}
    results: list[dict[str, Any]] = []
    predicted_ids: set[int | str] = set()
    for image_id, raw_boxes, raw_scores, raw_classes in predictions:
        if image_id not in number_of:
            raise ValueError(f"the data set has no image {image_id!r}")
        if image_id in predicted_ids:
            raise ValueError(f"image {image_id!r} was predicted twice")
        predicted_ids.add(image_id)
        boxes = np.asarray(raw_boxes, np.float64).reshape(-1, 4)
        scores, classes = np.asarray(raw_scores, np.float64), np.asarray(raw_classes, np.int64)
        if not len(boxes) == len(scores) == len(classes):
            raise ValueError(f"image {image_id!r}: {len(boxes)} boxes, {len(scores)} scores, {len(classes)} classes")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"image {image_id!r}: a box or score is not finite")
        if len(classes) and not (classes.min() >= 1 and classes.max() < len(dataset.classes)):
            raise ValueError(f"image {image_id!r}: a class id outside 1..{len(dataset.classes) - 1}")
        # The library cuts to 100 for each class; COCO's rule of 100 for each image is applied here.
        best = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]
        for box, score, class_id in zip(_xywh(boxes[best]), scores[best], classes[best], strict=True):
            results.append(
                {
                    "image_id": number_of[image_id],
                    "category_id": int(class_id),
                    "bbox": box,
                    "score": float(score),
                }
            )
    return results


def _xywh(boxes: npt.NDArray[Any]) -> list[list[float]]:
    """Convert boxes [N, 4] from corners to x, y, width, height."""
    wide = boxes.astype(np.float64)
    wide[:, 2:] -= wide[:, :2]
    return wide.tolist()  # type: ignore[no-any-return]


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """Return the mean of the values that exist (the library marks others with -1), or None."""
    existing = values[values > -1]
    mean = float(existing.mean()) if existing.size else math.nan
    return None if math.isnan(mean) else mean


def _format(value: float | None) -> str:
    """Format a figure for the table."""
    return "-" if value is None else f"{value:.3f}"
