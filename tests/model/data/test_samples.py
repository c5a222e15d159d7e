"""Samples and data sets: errors in one message, decoding as the service decodes, splitting."""

import numpy as np
import pytest
from PIL import Image

from model.data import DataError, split
from tests.model.data.files import box_entry, image_entry, load, write_coco


def test_labels_are_read_only(tmp_path):
    sample = load(write_coco(tmp_path, [box_entry([5, 6, 10, 20])])).samples[0]
    with pytest.raises(ValueError, match="read-only"):
        sample.boxes[0, 0] = 1


def test_one_error_lists_ten_problems_and_counts_the_rest(tmp_path):
    path = write_coco(tmp_path, [box_entry([5, 6, 0, 20], n) for n in range(13)])
    with pytest.raises(DataError) as caught:
        load(path)
    assert len(caught.value.problems) == 13
    assert str(caught.value).startswith("13 problems:")
    assert "box 9 " in str(caught.value)
    assert "box 10 " not in str(caught.value)
    assert str(caught.value).endswith("... and 3 more")


def test_images_are_loaded_as_they_are_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.new("RGB", (40, 30), "black")
    sideways.paste("red", (0, 0, 40, 3))  # the stored top is the shown right
    path = write_coco(tmp_path, [box_entry([0, 0, 30, 40])], [image_entry(width=30, height=40)])
    sideways.save(tmp_path / "images/1.png", exif=exif)
    dataset = load(path)
    pixels = dataset.load(0)
    assert pixels.shape == (40, 30, 3)
    assert pixels[20, 29].tolist() == [255, 0, 0]
    assert pixels[20, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_training_decodes_an_image_as_the_service_does(tmp_path, mode):
    decoding = pytest.importorskip("service.images.decoding")
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257 + 3)
    else:
        image = Image.fromarray(noise, "RGBA" if mode != "CMYK" else "CMYK").convert(mode)
    path = write_coco(tmp_path, [box_entry([0, 0, 9, 9])])
    file = tmp_path / "images/1.png"
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    pixels = load(path).load(0)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, decoding.decode(file.read_bytes(), max_pixels=10_000))


def test_an_image_that_stops_half_way_is_named_by_the_check_and_when_it_is_read(tmp_path):
    path = write_coco(tmp_path, [box_entry([0, 0, 9, 9])], [image_entry(name="1.jpg"), image_entry(2, "2.png")])
    file = tmp_path / "images/1.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    load(path).check_images()
    file.write_bytes(file.read_bytes()[:-300])
    dataset = load(path)
    for attempt in (lambda: dataset.load(0), dataset.check_images):
        with pytest.raises(DataError, match=r"1\.jpg: the image cannot be decoded"):
            attempt()


def test_decoded_data_sets_no_longer_need_their_files(tmp_path):
    dataset = load(write_coco(tmp_path, [box_entry([0, 0, 9, 9])])).decoded()
    (tmp_path / "images/1.png").unlink()
    pixels, sample = dataset[0]
    assert pixels[0, 0].tolist() == [10, 200, 30]
    assert sample is dataset.samples[0]


def test_split_is_the_same_for_the_same_seed_and_loses_nothing(tmp_path):
    images = [image_entry(i, f"{1 + i % 2}.png") for i in range(20)]
    dataset = load(write_coco(tmp_path, [box_entry([0, 0, 9, 9])], images))

    def ids(part):
        return [sample.image_id for sample in part.samples]

    rest, part = split(dataset, 0.25, seed=3)
    assert (len(rest), len(part)) == (15, 5)
    assert sorted(ids(rest) + ids(part)) == list(range(20))
    assert ids(split(dataset, 0.25, seed=3)[1]) == ids(part)
    assert ids(split(dataset, 0.25, seed=4)[1]) != ids(part)
    with pytest.raises(ValueError, match="leaves one side empty"):
        split(dataset, 0.01, seed=3)
