"""COCO json and VOC xml read into one shape, and checked before hours are spent on them."""

from __future__ import annotations

import json
import logging
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from model.training.samples import BACKGROUND, DataError, Dataset, Pixels, Sample, split

__all__ = [
    "BACKGROUND",
    "DataError",
    "Dataset",
    "OnBadBox",
    "Pixels",
    "Sample",
    "load_coco",
    "load_dataset",
    "load_voc",
    "split",
]

OnBadBox = Literal["error", "skip"]

_LOG = logging.getLogger(__name__)
# Annotation tools round outwards, so a box may hang over the border by a pixel; beyond that something is wrong.
_OVERHANG = 1.0
_EXIF_ORIENTATION = 0x0112


def load_dataset(spec: str | Path, split: str, *, on_bad_box: OnBadBox = "error") -> Dataset:
    """Read split ``split`` of the folder ``spec``, in whichever of three layouts it has.

    - ``<split>.json`` with ``images/<split>/`` (or ``<split>/``, or ``images/``);
    - COCO's ``annotations/instances_<split>*.json`` with a folder of the name's ending, as ``train2017/``;
    - VOC's ``ImageSets/Main/<split>.txt`` with ``Annotations/`` and ``JPEGImages/``.

    Raises DataError.
    """
    root = Path(spec)
    if not root.is_dir():
        raise DataError([f"{root}: no such folder"])
    if (root / f"{split}.json").is_file():
        folders = (root / "images" / split, root / split, root / "images")
        images = next((folder for folder in folders if folder.is_dir()), folders[0])
        return load_coco(root / f"{split}.json", images, on_bad_box=on_bad_box)
    if found := sorted((root / "annotations").glob(f"instances_{split}*.json")):
        return load_coco(found[0], root / found[0].stem.removeprefix("instances_"), on_bad_box=on_bad_box)
    if (root / "ImageSets" / "Main" / f"{split}.txt").is_file():
        return load_voc(root, split, on_bad_box=on_bad_box)
    raise DataError(
        [
            f"{root}: no split {split!r}; looked for {split}.json, annotations/instances_{split}*.json "
            f"and ImageSets/Main/{split}.txt"
        ]
    )


def load_coco(json_path: str | Path, images_dir: str | Path, *, on_bad_box: OnBadBox = "error") -> Dataset:
    """Read a COCO json; ``iscrowd: 1`` becomes ignore, and category ids become 1..C in their own order.

    Raises DataError with up to ten problems: an unreadable json, a missing picture or one of another size than the
    json says, a box that is NaN, has no area or leaves the picture, an unknown class or picture id, no box at all.
    ``on_bad_box="skip"`` leaves bad boxes out instead, and says which; the other problems stay errors.
    """
    source, folder = Path(json_path), Path(images_dir)
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
        categories = {int(c["id"]): str(c["name"]) for c in data["categories"]}
        images = {image["id"]: _Labels(folder / image["file_name"], image) for image in data["images"]}
        annotations = [dict(annotation) for annotation in data["annotations"]]
    except OSError as error:
        raise DataError([f"{source}: cannot be read ({error.strerror})"]) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError([f"{source}: not a COCO json ({reason})"]) from error

    checks = _Checks(on_bad_box)
    if len(images) < len(data["images"]):
        checks.problems.append(f"{source}: {len(data['images']) - len(images)} pictures have the id of another")
    class_of = {category: i for i, category in enumerate(sorted(categories), start=1)}
    for labels in images.values():
        checks.picture(labels)
    for number, annotation in enumerate(annotations):
        name = f"{source}: box {annotation.get('id', number)}"
        image = images.get(annotation.get("image_id"))
        if image is None:
            checks.problems.append(f"{name}: no picture has the id {annotation.get('image_id')}")
            continue
        name += f" of {image.path.name}"
        class_id = class_of.get(annotation.get("category_id", -1))
        if class_id is None:
            checks.problems.append(f"{name}: no category has the id {annotation.get('category_id')}")
            continue
        try:
            x, y, w, h = (float(v) for v in annotation["bbox"])
            area = float(annotation.get("area", w * h))
        except (KeyError, TypeError, ValueError):
            checks.bad_box(f"{name}: bbox and area are not numbers, four and one")
            continue
        checks.box(image, name, (x, y, x + w, y + h), class_id, bool(annotation.get("iscrowd", 0)), area)
    names = (BACKGROUND, *(categories[c] for c in sorted(categories)))
    return checks.dataset(source, images.items(), names)


def load_voc(
    root: str | Path, split: str, classes: Sequence[str] | None = None, *, on_bad_box: OnBadBox = "error"
) -> Dataset:
    """Read a VOC folder's split; ``difficult`` becomes ignore.

    VOC counts pixels from 1 and includes the last one, so a box becomes (xmin - 1, ymin - 1, xmax, ymax).
    classes: names without background; None takes every name in ``Annotations/``, sorted, so that all splits agree.
    Raises DataError as ``load_coco``.
    """
    folder = Path(root)
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        # A per-class list has a second column, 1, 0 or -1; the picture's name is the first.
        stems = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError([f"{listing}: cannot be read ({error})"]) from error

    checks = _Checks(on_bad_box)
    if classes is None:
        every = (_parse(path, lambda _: None) for path in sorted((folder / "Annotations").glob("*.xml")))
        classes = sorted({_text(o, "name") for tree in every if tree is not None for o in tree.iter("object")})
    class_of = {name: i for i, name in enumerate(classes, start=1)}
    images: dict[str, _Labels] = {}
    for stem in stems:
        xml = folder / "Annotations" / f"{stem}.xml"
        tree = _parse(xml, checks.problems.append)
        if tree is None:
            continue
        size = {key: tree.findtext(f"size/{key}") for key in ("width", "height")}
        file_name = tree.findtext("filename") or f"{stem}.jpg"
        image = images[stem] = _Labels(folder / "JPEGImages" / file_name, size)
        checks.picture(image)
        for number, thing in enumerate(tree.iter("object")):
            label = _text(thing, "name")
            name = f"{xml}: box {number} ({label or 'no name'})"
            if label not in class_of:
                checks.problems.append(f"{name}: unknown class; the classes are {', '.join(classes)}")
                continue
            try:
                x1, y1, x2, y2 = (float(_text(thing, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
            except ValueError:
                checks.bad_box(f"{name}: bndbox is not four numbers")
                continue
            # Equal corners are one pixel in VOC's counting, but no tool draws one: it is a slip of the mouse.
            no_area = x2 <= x1 or y2 <= y1
            box = (x1, y1, x2, y2) if no_area else (x1 - 1, y1 - 1, x2, y2)
            checks.box(image, name, box, class_of[label], _text(thing, "difficult") == "1")
    return checks.dataset(listing, images.items(), (BACKGROUND, *classes))


class _Labels:
    """A picture's labels while they are gathered. size: holds width and height as the annotation gives them."""

    def __init__(self, path: Path, size: Mapping[str, Any]) -> None:
        self.path = path
        self.stated = (size.get("width"), size.get("height"))
        self.width = self.height = 0
        self.rows: list[tuple[tuple[float, float, float, float], int, bool, float]] = []


class _Checks:
    """Gathers problems, so that one run names them all."""

    def __init__(self, on_bad_box: OnBadBox) -> None:
        self.problems: list[str] = []
        self.skipped: list[str] = []
        self.bad_box = self.skipped.append if on_bad_box == "skip" else self.problems.append

    def picture(self, labels: _Labels) -> None:
        """Read the header (not the pixels) for the size; it must be the annotation's, if that gives one."""
        try:
            with Image.open(labels.path) as picture:
                width, height = picture.size
                # Orientations 5 to 8 are shown on their side.
                if picture.getexif().get(_EXIF_ORIENTATION, 1) >= 5:
                    width, height = height, width
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            missing = isinstance(error, FileNotFoundError)
            self.problems.append(f"{labels.path}: {'missing' if missing else f'not a picture ({error})'}")
            return
        labels.width, labels.height = width, height
        stated = tuple(str(v) for v in labels.stated)
        if stated not in {("None", "None"), ("0", "0"), (str(width), str(height))}:
            self.problems.append(
                f"{labels.path}: the picture is shown {width}x{height}, its annotation says {stated[0]}x{stated[1]}"
            )

    def box(
        self,
        labels: _Labels,
        name: str,
        box: tuple[float, float, float, float],
        class_id: int,
        ignore: bool,
        area: float | None = None,
    ) -> None:
        """Keep a box (xyxy, picture's pixels), or note what is wrong with it."""
        x1, y1, x2, y2 = box
        text = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
        if not all(math.isfinite(v) for v in box):
            self.bad_box(f"{name}: {text} is not finite")
        elif x2 <= x1 or y2 <= y1:
            self.bad_box(f"{name}: {text} has no area")
        elif labels.width == 0:
            return  # the picture itself is already a problem
        elif min(x1, y1) < -_OVERHANG or x2 > labels.width + _OVERHANG or y2 > labels.height + _OVERHANG:
            self.bad_box(f"{name}: {text} leaves its picture of {labels.width}x{labels.height}")
        else:
            inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(labels.width)), min(y2, float(labels.height)))
            if inside[2] <= inside[0] or inside[3] <= inside[1]:
                self.bad_box(f"{name}: {text} has no area inside its picture")
                return
            labels.rows.append((inside, class_id, ignore, (x2 - x1) * (y2 - y1) if area is None else area))

    def dataset(self, source: Path, images: Iterable[tuple[Any, _Labels]], classes: tuple[str, ...]) -> Dataset:
        """The data set, or DataError with all that was found."""
        samples = tuple(_sample(image_id, labels) for image_id, labels in images)
        if not self.problems and not any(len(sample.boxes) for sample in samples):
            self.problems.append(
                f"{source}: no box in {len(samples)} pictures" if samples else f"{source}: no pictures"
            )
        if self.problems:
            raise DataError(self.problems)
        if self.skipped:
            _LOG.warning("left out %d bad boxes: %s", len(self.skipped), "; ".join(self.skipped[:10]))
        return Dataset(samples, classes, tuple(self.skipped))


def _sample(image_id: int | str, labels: _Labels) -> Sample:
    boxes, class_ids, ignore, areas = zip(*labels.rows, strict=True) if labels.rows else ((), (), (), ())
    return Sample(
        path=labels.path,
        image_id=image_id,
        width=labels.width,
        height=labels.height,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        class_ids=np.array(class_ids, np.int64),
        ignore=np.array(ignore, np.bool_),
        areas=np.array(areas, np.float32),
    )


def _parse(path: Path, report: Callable[[str], None]) -> ET.Element | None:
    try:
        return ET.parse(path).getroot()
    except FileNotFoundError:
        report(f"{path}: missing")
    except (OSError, ET.ParseError, ValueError) as error:
        report(f"{path}: not readable as xml ({error})")
    return None


def _text(element: ET.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
