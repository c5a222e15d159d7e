"""COCO JSON: boxes become corners, and an unreadable file is named."""

import numpy as np
import pytest

from model.config import BACKGROUND_NAME
from model.data import DataError
from tests.model.data.files import box_entry, load, write_coco


def test_coco_boxes_become_corners_and_sparse_ids_become_consecutive(tmp_path):
    path = write_coco(
        tmp_path, [box_entry([5, 6, 10, 20], iscrowd=1, area=77), box_entry([0, 0, 40, 30], 2, category_id=3)]
    )
    dataset = load(path)
    assert dataset.classes == (BACKGROUND_NAME, "cat", "dog")
    assert len(dataset) == 2
    sample = dataset.samples[0]
    assert sample.boxes.dtype == np.float32
    assert sample.boxes.tolist() == [[5, 6, 15, 26], [0, 0, 40, 30]]
    assert sample.class_ids.tolist() == [2, 1]
    assert sample.ignore.tolist() == [True, False]
    assert sample.areas.tolist() == [77, 1200]


def test_an_image_without_boxes_stays_as_background(tmp_path):
    sample = load(write_coco(tmp_path, [box_entry([5, 6, 10, 20])])).samples[1]
    assert sample.boxes.shape == (0, 4)
    assert (sample.width, sample.height) == (40, 30)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"category_id": 8}, "no category has the id 8"),
        ({"image_id": 5}, "no image has the id 5"),
    ],
)
def test_an_unknown_class_or_image_is_an_error_even_when_bad_boxes_are_skipped(tmp_path, change, complaint):
    with pytest.raises(DataError, match=complaint):
        load(write_coco(tmp_path, [box_entry([0, 0, 9, 9]) | change]), on_bad_box="skip")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not a COCO JSON"),
        ("[]", "not a COCO JSON"),
        ('{"images": []}', "'categories' is missing"),
        ('{"images": [], "categories": [], "annotations": [3]}', "not a COCO JSON"),
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
