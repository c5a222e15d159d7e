"""Boxes drawn on an image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from model.structures import Detections
from service.rendering.boxes import colour, draw_boxes, draw_caption, draw_detections, encode

GREY = np.full((80, 120, 3), 128, np.uint8)


def test_a_box_is_outlined_in_the_colour_of_its_category_and_the_image_is_not_changed():
    drawing = np.asarray(draw_boxes(GREY, np.array([[10.0, 20.0, 60.0, 70.0]], np.float32), [""], [3]))
    for x, y in ((10, 45), (59, 45), (35, 20), (35, 69)):
        assert tuple(drawing[y, x]) == colour(3)
    assert tuple(drawing[45, 35]) == (128, 128, 128)
    assert (GREY == 128).all()


def test_the_first_box_is_on_top():
    boxes = np.array([[10.0, 20.0, 60.0, 70.0]] * 2, np.float32)
    assert tuple(np.asarray(draw_boxes(GREY, boxes, ["", ""], [1, 2]))[45, 10]) == colour(1)


def test_detections_have_label_and_score():
    detections = Detections(
        boxes=torch.tensor([[10.0, 40.0, 60.0, 70.0]]),
        scores=torch.tensor([0.9]),
        class_ids=torch.tensor([1]),
        labels=("cat",),
        proposal_indices=torch.tensor([0]),
        timings={},
        batch_size=1,
    )
    expected = draw_boxes(GREY, detections.boxes.numpy(), ["cat 0.90"], [1])
    assert np.array_equal(np.asarray(draw_detections(GREY, detections)), np.asarray(expected))


@pytest.mark.parametrize("corner", [(0.0, 0.0), (119.0, 79.0), (0.0, 79.0), (119.0, 0.0)])
def test_a_caption_is_always_inside_the_image(corner):
    image = Image.fromarray(GREY)
    draw_caption(image, corner, "cat", 1)
    background = (np.asarray(image) == colour(1)).all(axis=2)
    assert background.sum() > 50


def test_colours_of_neighbouring_categories_differ():
    colours = np.array([colour(category) for category in range(91)], int)
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 100


@pytest.mark.parametrize(("media_type", "file_format"), [("image/jpeg", "JPEG"), ("image/png", "PNG")])
def test_the_drawing_is_encoded_as_its_media_type(media_type, file_format):
    with Image.open(io.BytesIO(encode(Image.fromarray(GREY), media_type))) as image:
        assert (image.format, image.size) == (file_format, (120, 80))
