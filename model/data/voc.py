"""Read PASCAL VOC's XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

from model.config import BACKGROUND_NAME
from model.data.labels import ImageLabels, LabelChecks, OnBadBox
from model.data.samples import DataError, Dataset


def load_voc(
    root: str | Path, split: str, classes: Sequence[str] | None = None, *, on_bad_box: OnBadBox = "error"
) -> Dataset:
    """Read a split of a VOC folder; ``difficult`` becomes ignore.

    VOC counts pixels from 1 and includes the last one, so a box becomes (xmin - 1, ymin - 1, xmax, ymax).
    classes: names without background; None takes every name in ``Annotations/``, sorted, so that all splits agree.
    Raises ``DataError`` as ``load_coco`` does.
    """
    folder = Path(root)
    listing = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        # A list for one class has a second column, 1, 0 or -1; the image's name is the first.
        stems = [line.split()[0] for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError([f"{listing}: cannot be read ({error})"]) from error

    checks = LabelChecks(on_bad_box)
    if classes is None:
        classes = _read_class_names(folder / "Annotations")
    class_ids = {name: i for i, name in enumerate(classes, start=1)}
    images: dict[str, ImageLabels] = {}
    for stem in stems:
        xml = folder / "Annotations" / f"{stem}.xml"
        tree = _parse(xml, checks.problems.append)
        if tree is None:
            continue
        size = {key: tree.findtext(f"size/{key}") for key in ("width", "height")}
        file_name = tree.findtext("filename") or f"{stem}.jpg"
        labels = images[stem] = ImageLabels(folder / "JPEGImages" / file_name, size)
        checks.check_image(labels)
        for number, element in enumerate(tree.iter("object")):
            class_name = _text(element, "name")
            name = f"{xml}: box {number} ({class_name or 'no name'})"
            if class_name not in class_ids:
                checks.problems.append(f"{name}: unknown class; the classes are {', '.join(classes)}")
                continue
            try:
                x1, y1, x2, y2 = (float(_text(element, f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
            except ValueError:
                checks.bad_box(f"{name}: bndbox is not four numbers")
                continue
            # Equal corners are one pixel in VOC's counting, but nobody draws such a box on purpose.
            no_area = x2 <= x1 or y2 <= y1
            box = (x1, y1, x2, y2) if no_area else (x1 - 1, y1 - 1, x2, y2)
            checks.add_box(labels, name, box, class_ids[class_name], _text(element, "difficult") == "1")
    return checks.build_dataset(listing, images.items(), (BACKGROUND_NAME, *classes))


def _read_class_names(annotations: Path) -> list[str]:
    """Read the name of every object in a folder of XML files, sorted; unreadable files are left to the splits."""
    trees = (_parse(path, lambda _: None) for path in sorted(annotations.glob("*.xml")))
    return sorted({_text(element, "name") for tree in trees if tree is not None for element in tree.iter("object")})


def _parse(path: Path, report: Callable[[str], None]) -> ET.Element | None:
    """Parse an XML file and return its root; report a problem and return None where that is impossible."""
    try:
        return ET.parse(path).getroot()
    except FileNotFoundError:
        report(f"{path}: missing")
    except (OSError, ET.ParseError, ValueError) as error:
        report(f"{path}: not readable as xml ({error})")
    return None


def _text(element: ET.Element, path: str) -> str:
    """Return the text of the child at ``path``; empty where there is none."""
    return (element.findtext(path) or "").strip()
