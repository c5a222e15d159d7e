"""Write small data sets in COCO JSON and VOC XML."""

import json
from pathlib import Path

from PIL import Image

from model.data import load_coco


def write_image(path: Path, size=(40, 30), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 30)).save(path, **options)
    return path


def write_coco(root: Path, annotations, images=None, categories=None) -> Path:
    """Write a data set; its images are 1.png and 2.png, 40x30, unless ``images`` says otherwise."""
    for name in ("1.png", "2.png"):
        write_image(root / "images" / name)
    images = images or [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)]
    categories = categories or [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    path = root / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def box_entry(bbox, number=1, **more):
    return {"id": number, "image_id": 1, "category_id": 7, "bbox": bbox, **more}


def load(path: Path, **options):
    return load_coco(path, path.parent / "images", **options)


def write_voc(root: Path, objects: str, stem="a", split="train", size=(40, 30)) -> None:
    write_image(root / "JPEGImages" / f"{stem}.jpg", size)
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{stem}\n")
    (root / "Annotations" / f"{stem}.xml").write_text(
        f"<annotation><filename>{stem}.jpg</filename><size><width>40</width><height>30</height></size>"
        f"{objects}</annotation>"
    )


def object_xml(name="dog", corners=(1, 1, 20, 10), difficult=0) -> str:
    inner = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inner}</bndbox></object>"


def image_entry(number=1, name="1.png", width=40, height=30):
    return {"id": number, "file_name": name, "width": width, "height": height}
