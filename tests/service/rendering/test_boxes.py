"""Boxes drawn on an image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from model.structures import Detections
from service.errors import TooLarge
from service.rendering import boxes as rendering
from service.rendering.boxes import (
    colour,
    detection_captions,
    draw_boxes,
    draw_caption,
    draw_detections,
    encode,
    proposal_captions,
)

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


def test_the_outline_of_a_box_is_as_thick_as_suits_the_image_and_ends_at_the_box():
    image = np.zeros((800, 800, 3), np.uint8)  # lines of four pixels
    drawing = np.asarray(draw_boxes(image, np.array([[100.0, 100, 200, 300], [400, 400, 402, 500]]), ["", ""], [1, 1]))
    drawn = drawing.any(axis=2)
    assert drawn.sum() == 100 * 200 - 92 * 192 + 2 * 100
    assert drawn[100:300, 100:104].all()
    assert drawn[400:500, 400:402].all()


def test_boxes_over_the_limit_of_drawn_pixels_are_left_out(monkeypatch):
    monkeypatch.setattr(rendering, "MAX_DRAWN_PIXELS", 450)
    boxes = np.array([[10.0, 20.0, 60.0, 70.0], [30, 40, 110, 75], [1, 1, 9, 9]], np.float32)
    drawing = np.asarray(draw_boxes(GREY, boxes, ["", "", ""], [1, 2, 3]))
    assert np.array_equal(drawing, np.asarray(draw_boxes(GREY, boxes[:2], ["", ""], [1, 2])))
    assert not (drawing == colour(3)).all(axis=2).any()
    long = np.asarray(draw_boxes(GREY, boxes, ["", "a long caption", ""], [1, 2, 3]))
    assert np.array_equal(long, np.asarray(draw_boxes(GREY, boxes[:1], [""], [1])))


def test_thousands_of_boxes_on_an_image_of_one_row_are_not_all_drawn():
    boxes = np.tile(np.array([[0.0, 0.0, 2_000_000.0, 1.0]], np.float32), (2000, 1))
    font = rendering._pen_sizes((2_000_000, 1))[1]
    assert rendering._count_drawn(boxes, [""] * 2000, 1, font) < 300


def test_captions_of_detections_and_of_the_best_ten_proposals():
    assert detection_captions(("cat", "dog"), (0.9, 0.125)) == ["cat 0.90", "dog 0.12"]
    captions = proposal_captions(range(12), [0.5] * 12)
    assert captions[9] == "L9 0.50"
    assert captions[10:] == ["", ""]


def test_an_image_too_long_for_a_jpeg_is_too_large():
    image = Image.new("RGB", (65_501, 1))
    with pytest.raises(TooLarge, match="ask for image/png"):
        encode(image, "image/jpeg")
    assert encode(image, "image/png")
