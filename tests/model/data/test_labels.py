"""Checks of images and boxes: each problem is named, and bad boxes are skipped on request."""

import math

import pytest

from model.data import DataError, load_dataset
from tests.model.data.files import box_entry, image_entry, load, write_coco


@pytest.mark.parametrize(
    ("bbox", "complaint"),
    [
        ([5, 6, 0, 20], "has no area"),
        ([5, 6, 10, -2], "has no area"),
        ([math.nan, 6, 10, 20], "is not finite"),
        ([5, 6, math.inf, 20], "is not finite"),
        ([30, 6, 20, 20], "leaves its image of 40x30"),
        ([-3, 6, 20, 20], "leaves its image of 40x30"),
        ([5, 6, 10], "are not numbers"),
        ([5, 6, 10, "wide"], "are not numbers"),
        (None, "are not numbers"),
    ],
)
def test_a_bad_box_is_named_or_skipped_on_request(tmp_path, bbox, complaint):
    path = write_coco(tmp_path, [box_entry(bbox, 99), box_entry([0, 0, 10, 10], 2)])
    with pytest.raises(DataError, match=complaint) as caught:
        load(path)
    assert "train.json: box 99 of 1.png" in str(caught.value)
    dataset = load(path, on_bad_box="skip")
    assert dataset.samples[0].boxes.tolist() == [[0, 0, 10, 10]]
    assert len(dataset.skipped) == 1
    assert "box 99" in dataset.skipped[0]


def test_skipped_boxes_are_counted_and_named_in_the_log(tmp_path, caplog):
    load(write_coco(tmp_path, [box_entry([5, 6, 0, 20], 99), box_entry([0, 0, 10, 10], 2)]), on_bad_box="skip")
    assert "left out 1 bad boxes" in caplog.text
    assert "box 99" in caplog.text


def test_a_box_over_the_border_by_rounding_is_clipped(tmp_path):
    sample = load(write_coco(tmp_path, [box_entry([-0.4, 6, 41, 24.9])])).samples[0]
    assert sample.boxes[0].tolist() == pytest.approx([0, 6, 40, 30])


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        ([image_entry(name="gone.png")], "gone.png: missing"),
        ([image_entry(width=41)], "1.png: the image is shown 40x30, its annotation says 41x30"),
        ([image_entry(name="text.png")], "text.png: not an image"),
        ([image_entry(), image_entry(name="2.png")], "1 images have the id of another"),
    ],
)
def test_missing_and_wrong_images_are_errors(tmp_path, images, complaint):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "text.png").write_text("no image")
    with pytest.raises(DataError, match=complaint):
        load(write_coco(tmp_path, [box_entry([0, 0, 9, 9])], images))


def test_a_data_set_without_a_box_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"train\.json: no box in 2 images"):
        load(write_coco(tmp_path, []))


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
