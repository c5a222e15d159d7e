"""PASCAL VOC XML: pixels counted from 1, difficult objects, and what is named where it is wrong."""

import pytest

from model.config import BACKGROUND_NAME
from model.data import DataError, load_voc
from tests.model.data.files import object_xml, write_voc


def test_voc_corners_count_from_one_and_include_the_last_pixel(tmp_path):
    write_voc(tmp_path, object_xml(corners=(1, 1, 40, 30)) + object_xml("cat", (11, 6, 20, 25), difficult=1))
    dataset = load_voc(tmp_path, "train")
    assert dataset.classes == (BACKGROUND_NAME, "cat", "dog")
    sample = dataset.samples[0]
    assert sample.image_id == "a"
    assert sample.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 25]]
    assert sample.class_ids.tolist() == [2, 1]
    assert sample.ignore.tolist() == [False, True]


def test_voc_box_of_no_area_is_named_with_its_class(tmp_path):
    write_voc(tmp_path, object_xml(corners=(7, 7, 7, 7)) + object_xml())
    with pytest.raises(DataError, match=r"a\.xml: box 0 \(dog\): \(7, 7, 7, 7\) has no area"):
        load_voc(tmp_path, "train")
    dataset = load_voc(tmp_path, "train", on_bad_box="skip")
    assert len(dataset.samples[0].boxes) == 1
    assert len(dataset.skipped) == 1


def test_a_class_that_is_not_listed_is_an_error(tmp_path):
    write_voc(tmp_path, object_xml("dgo"))
    with pytest.raises(DataError, match=r"box 0 \(dgo\): unknown class; the classes are cat, dog"):
        load_voc(tmp_path, "train", ["cat", "dog"])


def test_voc_classes_are_those_of_all_splits(tmp_path):
    write_voc(tmp_path, object_xml("dog"))
    write_voc(tmp_path, object_xml("ape"), stem="b", split="test")
    assert load_voc(tmp_path, "train").classes == load_voc(tmp_path, "test").classes == (BACKGROUND_NAME, "ape", "dog")


def test_voc_unreadable_and_missing_xml_are_named(tmp_path):
    write_voc(tmp_path, object_xml())
    (tmp_path / "ImageSets/Main/train.txt").write_text("a  1\nbroken -1\ngone 1\n")
    (tmp_path / "Annotations/broken.xml").write_text("<annotation>")
    with pytest.raises(DataError) as caught:
        load_voc(tmp_path, "train")
    broken, gone = caught.value.problems
    assert "broken.xml: not readable as xml" in broken
    assert gone.endswith("gone.xml: missing")
