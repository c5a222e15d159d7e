"""What a data set must be before training starts, and what is said when it is not."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.training.data import BACKGROUND, DataError, load_coco, load_dataset, load_voc, split


def write_picture(path: Path, size=(40, 30), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 200, 30)).save(path, **options)
    return path


def write_coco(root: Path, annotations, images=None, categories=None) -> Path:
    """A data set of two 40x30 pictures, 1.png and 2.png, unless told otherwise."""
    for name in ("1.png", "2.png"):
        write_picture(root / "images" / name)
    images = images or [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)]
    categories = categories or [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    path = root / "train.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def box(bbox, number=1, **more):
    return {"id": number, "image_id": 1, "category_id": 7, "bbox": bbox, **more}


def load(path: Path, **options):
    return load_coco(path, path.parent / "images", **options)


def write_voc(root: Path, objects: str, stem="a", split="train", size=(40, 30)) -> None:
    write_picture(root / "JPEGImages" / f"{stem}.jpg", size)
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{stem}\n")
    (root / "Annotations" / f"{stem}.xml").write_text(
        f"<annotation><filename>{stem}.jpg</filename><size><width>40</width><height>30</height></size>"
        f"{objects}</annotation>"
    )


def thing(name="dog", corners=(1, 1, 20, 10), difficult=0) -> str:
    inner = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{inner}</bndbox></object>"


def test_coco_boxes_become_corners_and_sparse_ids_become_a_row(tmp_path):
    path = write_coco(tmp_path, [box([5, 6, 10, 20], iscrowd=1, area=77), box([0, 0, 40, 30], 2, category_id=3)])
    dataset = load(path)
    assert dataset.classes == (BACKGROUND, "cat", "dog")
    assert len(dataset) == 2
    sample = dataset.samples[0]
    assert sample.boxes.dtype == np.float32
    assert sample.boxes.tolist() == [[5, 6, 15, 26], [0, 0, 40, 30]]
    assert sample.class_ids.tolist() == [2, 1]
    assert sample.ignore.tolist() == [True, False]
    assert sample.areas.tolist() == [77, 1200]


def test_a_picture_without_boxes_stays_as_background(tmp_path):
    sample = load(write_coco(tmp_path, [box([5, 6, 10, 20])])).samples[1]
    assert sample.boxes.shape == (0, 4)
    assert (sample.width, sample.height) == (40, 30)


def test_labels_cannot_be_changed_by_who_reads_them(tmp_path):
    sample = load(write_coco(tmp_path, [box([5, 6, 10, 20])])).samples[0]
    with pytest.raises(ValueError, match="read-only"):
        sample.boxes[0, 0] = 1


@pytest.mark.parametrize(
    ("bbox", "complaint"),
    [
        ([5, 6, 0, 20], "has no area"),
        ([5, 6, 10, -2], "has no area"),
        ([math.nan, 6, 10, 20], "is not finite"),
        ([5, 6, math.inf, 20], "is not finite"),
        ([30, 6, 20, 20], "leaves its picture of 40x30"),
        ([-3, 6, 20, 20], "leaves its picture of 40x30"),
        ([5, 6, 10], "are not numbers"),
        ([5, 6, 10, "wide"], "are not numbers"),
        (None, "are not numbers"),
    ],
)
def test_a_bad_box_is_named_or_skipped_on_request(tmp_path, bbox, complaint):
    path = write_coco(tmp_path, [box(bbox, 99), box([0, 0, 10, 10], 2)])
    with pytest.raises(DataError, match=complaint) as caught:
        load(path)
    assert "train.json: box 99 of 1.png" in str(caught.value)
    dataset = load(path, on_bad_box="skip")
    assert dataset.samples[0].boxes.tolist() == [[0, 0, 10, 10]]
    assert len(dataset.skipped) == 1
    assert "box 99" in dataset.skipped[0]


def test_skipping_says_how_many_and_which(tmp_path, caplog):
    load(write_coco(tmp_path, [box([5, 6, 0, 20], 99), box([0, 0, 10, 10], 2)]), on_bad_box="skip")
    assert "left out 1 bad boxes" in caplog.text
    assert "box 99" in caplog.text


def test_a_box_over_the_border_by_rounding_is_clipped(tmp_path):
    sample = load(write_coco(tmp_path, [box([-0.4, 6, 41, 24.9])])).samples[0]
    assert sample.boxes[0].tolist() == pytest.approx([0, 6, 40, 30])


def test_one_error_lists_ten_problems_and_counts_the_rest(tmp_path):
    path = write_coco(tmp_path, [box([5, 6, 0, 20], n) for n in range(13)])
    with pytest.raises(DataError) as caught:
        load(path)
    assert len(caught.value.problems) == 13
    assert str(caught.value).startswith("13 problems:")
    assert "box 9 " in str(caught.value)
    assert "box 10 " not in str(caught.value)
    assert str(caught.value).endswith("... and 3 more")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"category_id": 8}, "no category has the id 8"),
        ({"image_id": 5}, "no picture has the id 5"),
    ],
)
def test_an_unknown_class_or_picture_is_an_error_even_when_bad_boxes_are_skipped(tmp_path, change, complaint):
    with pytest.raises(DataError, match=complaint):
        load(write_coco(tmp_path, [box([0, 0, 9, 9]) | change]), on_bad_box="skip")


def image(number=1, name="1.png", width=40, height=30):
    return {"id": number, "file_name": name, "width": width, "height": height}


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        ([image(name="gone.png")], "gone.png: missing"),
        ([image(width=41)], "1.png: the picture is shown 40x30, its annotation says 41x30"),
        ([image(name="text.png")], "text.png: not a picture"),
        ([image(), image(name="2.png")], "1 pictures have the id of another"),
    ],
)
def test_pictures_are_looked_at_before_training(tmp_path, images, complaint):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=complaint):
        load(write_coco(tmp_path, [box([0, 0, 9, 9])], images))


def test_a_data_set_without_a_box_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"train\.json: no box in 2 pictures"):
        load(write_coco(tmp_path, []))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not a COCO json"),
        ("[]", "not a COCO json"),
        ('{"images": []}', "'categories' is missing"),
        ('{"images": [], "categories": [], "annotations": [3]}', "not a COCO json"),
    ],
)
def test_an_unreadable_json_is_named(tmp_path, text, complaint):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(DataError, match=complaint) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(DataError, match=r"train\.json: cannot be read"):
        load(tmp_path / "train.json")


def test_voc_corners_count_from_one_and_include_the_last_pixel(tmp_path):
    write_voc(tmp_path, thing(corners=(1, 1, 40, 30)) + thing("cat", (11, 6, 20, 25), difficult=1))
    dataset = load_voc(tmp_path, "train")
    assert dataset.classes == (BACKGROUND, "cat", "dog")
    sample = dataset.samples[0]
    assert sample.image_id == "a"
    assert sample.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 25]]
    assert sample.class_ids.tolist() == [2, 1]
    assert sample.ignore.tolist() == [False, True]


def test_voc_box_of_no_area_is_named_with_its_class(tmp_path):
    write_voc(tmp_path, thing(corners=(7, 7, 7, 7)) + thing())
    with pytest.raises(DataError, match=r"a\.xml: box 0 \(dog\): \(7, 7, 7, 7\) has no area"):
        load_voc(tmp_path, "train")
    dataset = load_voc(tmp_path, "train", on_bad_box="skip")
    assert len(dataset.samples[0].boxes) == 1
    assert len(dataset.skipped) == 1


def test_voc_class_outside_the_given_ones_is_an_error(tmp_path):
    write_voc(tmp_path, thing("dgo"))
    with pytest.raises(DataError, match=r"box 0 \(dgo\): unknown class; the classes are cat, dog"):
        load_voc(tmp_path, "train", ["cat", "dog"])


def test_voc_classes_are_those_of_all_splits(tmp_path):
    write_voc(tmp_path, thing("dog"))
    write_voc(tmp_path, thing("ape"), stem="b", split="test")
    assert load_voc(tmp_path, "train").classes == load_voc(tmp_path, "test").classes == (BACKGROUND, "ape", "dog")


def test_voc_unreadable_and_missing_xml_are_named(tmp_path):
    write_voc(tmp_path, thing())
    (tmp_path / "ImageSets/Main/train.txt").write_text("a  1\nbroken -1\ngone 1\n")
    (tmp_path / "Annotations/broken.xml").write_text("<annotation>")
    with pytest.raises(DataError) as caught:
        load_voc(tmp_path, "train")
    broken, gone = caught.value.problems
    assert "broken.xml: not readable as xml" in broken
    assert gone.endswith("gone.xml: missing")


def test_folders_are_recognised_by_what_lies_in_them(tmp_path):
    write_coco(tmp_path / "plain", [box([0, 0, 9, 9])])
    write_voc_root = tmp_path / "voc"
    write_voc_root.mkdir()
    write_voc(write_voc_root, thing())
    coco = write_coco(tmp_path / "coco", [box([0, 0, 9, 9])])
    (tmp_path / "coco/annotations").mkdir()
    coco.rename(tmp_path / "coco/annotations/instances_train2017.json")
    (tmp_path / "coco/images").rename(tmp_path / "coco/train2017")
    assert [len(load_dataset(tmp_path / name, "train")) for name in ("plain", "voc", "coco")] == [2, 1, 2]
    with pytest.raises(DataError, match=r"no split 'val'; looked for val\.json"):
        load_dataset(tmp_path / "plain", "val")
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(str(tmp_path / "nowhere"), "train")


def test_pictures_are_loaded_as_they_are_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.new("RGB", (40, 30), "black")
    sideways.paste("red", (0, 0, 40, 3))  # the stored top is the shown right
    path = write_coco(tmp_path, [box([0, 0, 30, 40])], [image(width=30, height=40)])
    sideways.save(tmp_path / "images/1.png", exif=exif)
    dataset = load(path)
    pixels = dataset.load(0)
    assert pixels.shape == (40, 30, 3)
    assert pixels[20, 29].tolist() == [255, 0, 0]
    assert pixels[20, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_training_decodes_a_picture_as_the_service_does(tmp_path, mode):
    imaging = pytest.importorskip("service.inference.decoding")
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 257 + 3)
    else:
        picture = Image.fromarray(noise, "RGBA" if mode != "CMYK" else "CMYK").convert(mode)
    path = write_coco(tmp_path, [box([0, 0, 9, 9])])
    file = tmp_path / "images/1.png"
    picture.save(file, "TIFF" if mode == "CMYK" else "PNG")
    ours = load(path).load(0)
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, imaging.decode(file.read_bytes(), max_pixels=10_000))


def test_a_picture_that_stops_half_way_is_named_by_the_check_and_when_it_is_read(tmp_path):
    path = write_coco(tmp_path, [box([0, 0, 9, 9])], [image(name="1.jpg"), image(2, "2.png")])
    file = tmp_path / "images/1.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    load(path).check_pictures()
    file.write_bytes(file.read_bytes()[:-300])
    dataset = load(path)
    for attempt in (lambda: dataset.load(0), dataset.check_pictures):
        with pytest.raises(DataError, match=r"1\.jpg: the picture does not decode"):
            attempt()


def test_decoded_data_sets_no_longer_need_their_files(tmp_path):
    dataset = load(write_coco(tmp_path, [box([0, 0, 9, 9])])).decoded()
    (tmp_path / "images/1.png").unlink()
    pixels, sample = dataset[0]
    assert pixels[0, 0].tolist() == [10, 200, 30]
    assert sample is dataset.samples[0]


def test_split_is_the_same_for_the_same_seed_and_loses_nothing(tmp_path):
    images = [image(i, f"{1 + i % 2}.png") for i in range(20)]
    dataset = load(write_coco(tmp_path, [box([0, 0, 9, 9])], images))

    def ids(part):
        return [sample.image_id for sample in part.samples]

    rest, part = split(dataset, 0.25, seed=3)
    assert (len(rest), len(part)) == (15, 5)
    assert sorted(ids(rest) + ids(part)) == list(range(20))
    assert ids(split(dataset, 0.25, seed=3)[1]) == ids(part)
    assert ids(split(dataset, 0.25, seed=4)[1]) != ids(part)
    with pytest.raises(ValueError, match="leaves one side empty"):
        split(dataset, 0.01, seed=3)


@pytest.mark.data
def test_voc20_is_read_whole(voc20):
    counts = {}
    for name in ("train", "test"):
        dataset = load_dataset(voc20, name)
        ignored = sum(int(sample.ignore.sum()) for sample in dataset.samples)
        counts[name] = (len(dataset), sum(len(s.boxes) for s in dataset.samples) - ignored, ignored)
        assert len(dataset.classes) == 21
    assert counts == {"train": (7127, 15647, 2952), "test": (1000, 2549, 678)}


@pytest.mark.data
def test_bccd_names_its_two_boxes_of_no_area(voc20):
    bccd = voc20.parent / "bccd"
    with pytest.raises(DataError) as caught:
        load_dataset(bccd, "trainval")
    assert len(caught.value.problems) == 2
    assert "BloodImage_00338.xml" in str(caught.value)
    assert "BloodImage_00343.xml" in str(caught.value)
    parts = [load_dataset(bccd, name, on_bad_box="skip") for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [205, 87, 72]
    assert sum(len(part.skipped) for part in parts) == 2
    assert sum(len(s.boxes) for part in parts for s in part.samples) == 4886
