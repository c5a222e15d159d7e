"""How good a detector is: COCO's average precision and recall, by the library faster-coco-eval.

COCO's rules (101-point precision, IoU .50 to .95, at most 100 detections a picture) with one departure, for pictures
from VOC: an ignored box is matched by plain IoU, where COCO measures overlap with a crowd by the detection's own area.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model.structures import Detections, DetectOptions
from model.training.samples import Dataset, Pixels, Sample

MAX_DETECTIONS = 100
# Average precision is about the whole curve, not about the threshold that serves callers.
WHOLE_CURVE = DetectOptions(score_threshold=0.001, max_detections=MAX_DETECTIONS)
_SMALL, _LARGE, _WHOLE = 32.0**2, 96.0**2, 1e5**2  # COCO's areas, square pixels
_QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")

# image id, boxes [D, 4] xyxy in the picture's pixels, scores [D], class ids [D]; tensors or arrays
Prediction = tuple[int | str, Any, Any, Any]


class _Detector(Protocol):
    """What evaluation asks of ``model.detector.Detector``."""

    def canvas_for(self, height: int, width: int) -> tuple[int, int]: ...

    def detect(self, images: Sequence[Pixels], options: DetectOptions) -> list[Detections]: ...


@dataclass(frozen=True)
class ClassResult:
    """One class. boxes: those that count. ap, ap50: None where there are none."""

    name: str
    boxes: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class SizeResult:
    """The boxes of an area in [low, high], square pixels of the picture. ap, ap50: None where there are none.

    name: COCO's ``small``, ``medium`` and ``large``; or a quarter, those between the quartiles of the areas that are
    here, which says more where pictures are as small as a network's canvas.
    """

    name: str
    low: float
    high: float
    boxes: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class Evaluation:
    """What came out; figures from 0 to 1.

    ap: mean over classes and IoU .50 to .95 of average precision. ap50, ap75: at one IoU.
    ar100: mean recall over the same, with up to 100 detections a picture.
    sizes: by area: COCO's three parts (up to 32^2, up to 96^2, above), then four quarters.
    pictures, boxes, ignored, detections: how many; boxes are those that count.
    """

    ap: float
    ap50: float
    ap75: float
    ar100: float
    classes: tuple[ClassResult, ...]
    sizes: tuple[SizeResult, ...]
    pictures: int
    boxes: int
    ignored: int
    detections: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what does not exist is None."""
        return asdict(self)

    def table(self) -> Table:
        """A rich table, the classes and then the whole."""
        sizes = "   ".join(f"{size.name} {_figure(size.ap)}" for size in self.sizes[:3])
        table = Table(
            min_width=72,  # the caption on one line
            title=f"{self.pictures} pictures, {self.boxes} boxes ({self.ignored} more ignored)",
            caption=f"AP.75 {self.ap75:.3f}   AR@100 {self.ar100:.3f}   AP {sizes}",
        )
        table.add_column("class")
        for heading in ("boxes", "AP.5", "AP"):
            table.add_column(heading, justify="right")
        for row in self.classes:
            table.add_row(row.name, str(row.boxes), _figure(row.ap50), _figure(row.ap))
        table.add_section()
        table.add_row("all", str(self.boxes), _figure(self.ap50), _figure(self.ap), style="bold")
        return table


def evaluate(predictions: Iterable[Prediction], dataset: Dataset, *, crowd_overlap: bool = False) -> Evaluation:
    """Compare predictions with the data set's labels.

    A picture without a prediction has no detections. A detection whose best free match is an ignored box counts neither
    way, and one ignored box may take any number of them (as VOC's difficult objects do; where a detection overlaps a
    counted box enough as well, that one is matched first, as COCO does).

    crowd_overlap: match ignored boxes as COCO's crowds, by intersection over the detection's own area.
    Raises ValueError for an unknown or repeated picture, ragged or non-finite values, a class that is not the data
    set's, or a data set in which no box counts.
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
        pictures=len(dataset),
        boxes=int(counts.sum()),
        ignored=sum(int(sample.ignore.sum()) for sample in dataset.samples),
        detections=len(detections),
    )


def look(
    detector: _Detector, dataset: Dataset, options: DetectOptions, *, batch_size: int = 8, progress: bool = True
) -> Iterator[tuple[Sample, Detections]]:
    """Run a detector over a data set, canvas by canvas: each picture's labels and what was found in it.

    progress: draw a bar on the terminal.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("evaluating", total=len(dataset))
        for batch in _batches(detector, dataset, batch_size):
            found = detector.detect([dataset.load(i) for i in batch], options)
            for i, one in zip(batch, found, strict=True):
                yield dataset.samples[i], one
            bar.advance(task, len(batch))


def predict(
    detector: _Detector,
    dataset: Dataset,
    *,
    batch_size: int = 8,
    options: DetectOptions | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """``look``, and of each picture what ``evaluate`` takes.

    options: None asks for ``WHOLE_CURVE``.
    """
    found = look(detector, dataset, options or WHOLE_CURVE, batch_size=batch_size, progress=progress)
    return [(sample.image_id, one.boxes, one.scores, one.class_ids) for sample, one in found]


def evaluate_detector(
    detector: _Detector,
    dataset: Dataset,
    *,
    batch_size: int = 8,
    options: DetectOptions | None = None,
    crowd_overlap: bool = False,
    progress: bool = True,
) -> Evaluation:
    """``predict``, then ``evaluate``."""
    found = predict(detector, dataset, batch_size=batch_size, options=options, progress=progress)
    return evaluate(found, dataset, crowd_overlap=crowd_overlap)


class _PlainOverlap(COCOeval_faster):  # type: ignore[misc]  # the library carries no types
    """Overlap with ignored boxes as with any other.

    An ``ignore`` field would say it more simply, but the library overwrites that with ``iscrowd``; so ignored boxes are
    crowds to it, which also lets one of them take many detections, and only their overlap is measured otherwise.
    """

    def computeIoU(self, imgId: int, catId: int) -> Any:
        truth, found = (data.get(imgId, catId) for data in (self.gt_dataset, self.dt_dataset))
        if not truth or not found:
            return []
        # Rows by falling score, ties in the order given: the order in which the library goes on to match them.
        order = np.argsort([-one["score"] for one in found], kind="mergesort")[: self.params.maxDets[-1]]
        return mask.iou([found[i]["bbox"] for i in order], [one["bbox"] for one in truth], [0] * len(truth))


def _size_ranges(areas: npt.NDArray[np.float32]) -> list[tuple[str, float, float]]:
    """Names and bounds of the areas to look at, both ends included as COCO does."""
    thirds = [("small", 0.0, _SMALL), ("medium", _SMALL, _LARGE), ("large", _LARGE, _WHOLE)]
    low, middle, high = (float(value) for value in np.quantile(areas.astype(np.float64), (0.25, 0.5, 0.75)))
    return thirds + list(zip(_QUARTERS, (0.0, low, middle, high), (low, middle, high, _WHOLE), strict=True))


def _ground_truth(dataset: Dataset) -> dict[str, Any]:
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
    """The library's form of the predictions, the 100 best of each picture. Raises ValueError."""
    number_of = {sample.image_id: number for number, sample in enumerate(dataset.samples, start=1)}
    results: list[dict[str, Any]] = []
    seen: set[int | str] = set()
    for image_id, raw_boxes, raw_scores, raw_classes in predictions:
        if image_id not in number_of:
            raise ValueError(f"the data set has no picture {image_id!r}")
        if image_id in seen:
            raise ValueError(f"picture {image_id!r} was predicted twice")
        seen.add(image_id)
        boxes = np.asarray(raw_boxes, np.float64).reshape(-1, 4)
        scores, classes = np.asarray(raw_scores, np.float64), np.asarray(raw_classes, np.int64)
        if not len(boxes) == len(scores) == len(classes):
            raise ValueError(f"picture {image_id!r}: {len(boxes)} boxes, {len(scores)} scores, {len(classes)} classes")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"picture {image_id!r}: a box or score is not finite")
        if len(classes) and not (classes.min() >= 1 and classes.max() < len(dataset.classes)):
            raise ValueError(f"picture {image_id!r}: a class id outside 1..{len(dataset.classes) - 1}")
        # The library's own cut is per class; a picture's is ours to make.
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


def _batches(detector: _Detector, dataset: Dataset, batch_size: int) -> Iterator[list[int]]:
    """Samples that share a canvas, ``batch_size`` at a time."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, sample in enumerate(dataset.samples):
        groups[detector.canvas_for(sample.height, sample.width)].append(i)
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            yield members[start : start + batch_size]


def _xywh(boxes: npt.NDArray[Any]) -> list[list[float]]:
    wide = boxes.astype(np.float64)
    wide[:, 2:] -= wide[:, :2]
    return wide.tolist()  # type: ignore[no-any-return]


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """Of the values that exist (the library marks the others -1)."""
    there = values[values > -1]
    mean = float(there.mean()) if there.size else math.nan
    return None if math.isnan(mean) else mean


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
