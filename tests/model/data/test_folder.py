"""Folders are recognised by their layout."""

import pytest

from model.data import DataError, load_dataset
from tests.model.data.files import box_entry, object_xml, write_coco, write_voc


def test_folders_are_recognised_by_their_layout(tmp_path):
    write_coco(tmp_path / "plain", [box_entry([0, 0, 9, 9])])
    write_voc_root = tmp_path / "voc"
    write_voc_root.mkdir()
    write_voc(write_voc_root, object_xml())
    coco = write_coco(tmp_path / "coco", [box_entry([0, 0, 9, 9])])
    (tmp_path / "coco/annotations").mkdir()
    coco.rename(tmp_path / "coco/annotations/instances_train2017.json")
    (tmp_path / "coco/images").rename(tmp_path / "coco/train2017")
    assert [len(load_dataset(tmp_path / name, "train")) for name in ("plain", "voc", "coco")] == [2, 1, 2]
    with pytest.raises(DataError, match=r"no split 'val'; looked for val\.json"):
        load_dataset(tmp_path / "plain", "val")
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(str(tmp_path / "nowhere"), "train")


@pytest.mark.data
def test_voc20_is_read_whole(voc20):
    counts = {}
    for name in ("train", "test"):
        dataset = load_dataset(voc20, name)
        ignored = sum(int(sample.ignore.sum()) for sample in dataset.samples)
        counts[name] = (len(dataset), sum(len(s.boxes) for s in dataset.samples) - ignored, ignored)
        assert len(dataset.classes) == 21
    assert counts == {"train": (7127, 15647, 2952), "test": (1000, 2549, 678)}
