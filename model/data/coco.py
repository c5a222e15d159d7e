"""Read COCO JSON."""

from __future__ import annotations

import json
from pathlib import Path

from model.config import BACKGROUND_NAME
from model.data.labels import ImageLabels, LabelChecks, OnBadBox
from model.data.samples import DataError, Dataset


def load_coco(json_path: str | Path, images_dir: str | Path, *, on_bad_box: OnBadBox = "error") -> Dataset:
    """Read a COCO JSON; ``iscrowd: 1`` becomes ignore, and category ids become 1..C in their own order.

    Raises ``DataError`` that lists the problems: an unreadable JSON, a missing image or one of another size than the
    JSON says, a box that is NaN, has no area or leaves the image, an unknown class or image id, no box at all.
    ``on_bad_box="skip"`` leaves bad boxes out instead, and lists them in the data set; other problems stay errors.
    """
    source, folder = Path(json_path), Path(images_dir)
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
        categories = {int(category["id"]): str(category["name"]) for category in document["categories"]}
        images = {image["id"]: ImageLabels(folder / image["file_name"], image) for image in document["images"]}
        annotations = [dict(annotation) for annotation in document["annotations"]]
    except OSError as error:
        raise DataError([f"{source}: cannot be read ({error.strerror})"]) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError([f"{source}: not a COCO JSON ({reason})"]) from error

    checks = LabelChecks(on_bad_box)
    if len(images) < len(document["images"]):
        repeated = len(document["images"]) - len(images)
        checks.problems.append(f"{source}: {repeated} images have the id of another")
    class_ids = {category: i for i, category in enumerate(sorted(categories), start=1)}
    for labels in images.values():
        checks.check_image(labels)
    for number, annotation in enumerate(annotations):
        name = f"{source}: box {annotation.get('id', number)}"
        image = images.get(annotation.get("image_id"))
        if image is None:
            checks.problems.append(f"{name}: no image has the id {annotation.get('image_id')}")
            continue
        name += f" of {image.path.name}"
        class_id = class_ids.get(annotation.get("category_id", -1))
        if class_id is None:
            checks.problems.append(f"{name}: no category has the id {annotation.get('category_id')}")
            continue
        try:
            x, y, width, height = (float(value) for value in annotation["bbox"])
            area = float(annotation.get("area", width * height))
        except (KeyError, TypeError, ValueError):
            checks.bad_box(f"{name}: bbox and area are not numbers, four and one")
            continue
        box = (x, y, x + width, y + height)
        checks.add_box(image, name, box, class_id, bool(annotation.get("iscrowd", 0)), area)
    names = (BACKGROUND_NAME, *(categories[category] for category in sorted(categories)))
    return checks.build_dataset(source, images.items(), names)
