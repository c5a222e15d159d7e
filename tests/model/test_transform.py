"""Images on a canvas: size, pixels, padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from model import boxes as box_ops
from model.config import IMAGENET_MEAN, IMAGENET_STD
from model.presets import LITE, PAPER_VGG16, RESNET50_FPN
from model.transform import Transform, exact_canvas, resized_size

CPU = torch.device("cpu")
SMALL = replace(LITE.transform, min_size=384, max_size=384)


def test_the_short_side_is_scaled_unless_the_long_one_would_pass_its_limit() -> None:
    assert resized_size(RESNET50_FPN.transform, 480, 640) == (800, 1066)  # the floor of 1066.67
    assert resized_size(RESNET50_FPN.transform, 100, 1000) == (133, 1333)


def test_a_very_thin_image_keeps_at_least_one_pixel() -> None:
    assert resized_size(SMALL, 1, 20000) == (1, 384)


def test_the_exact_canvas_is_the_next_multiple_of_the_stride() -> None:
    assert exact_canvas(RESNET50_FPN.transform, 480, 640) == (800, 1088)
    assert exact_canvas(PAPER_VGG16.transform, 375, 500) == (608, 800)


@pytest.mark.parametrize("size", [(480, 640), (375, 500), (700, 1100), (33, 47), (2000, 300)])
def test_an_image_is_resized_and_normalised_as_by_torchvision(size: tuple[int, int]) -> None:
    # torchvision floors sizes and does not low-pass, and the two axes have a ratio each.
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    reference = GeneralizedRCNNTransform(800, 1333, IMAGENET_MEAN, IMAGENET_STD).eval()
    expected, _ = reference([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    resized = resized_size(RESNET50_FPN.transform, *size)
    assert resized == expected.image_sizes[0]
    batch = Transform(RESNET50_FPN.transform)([image], tuple(expected.tensors.shape[2:]), CPU)
    torch.testing.assert_close(batch.pixels, expected.tensors, rtol=1e-4, atol=1e-4)
    corners = torch.tensor([[0.0, 0.0, float(resized[1]), float(resized[0])]])
    original_corners = box_ops.rescale(corners, batch.sizes[0], batch.original_sizes[0])
    torch.testing.assert_close(original_corners, torch.tensor([[0.0, 0.0, float(size[1]), float(size[0])]]))


def test_the_other_images_of_a_batch_change_no_pixel() -> None:
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((80, 100, 3), (300, 384, 3)))
    (alone,) = Transform(SMALL)([small], (384, 384), CPU).pixels
    _, in_batch = Transform(SMALL)([large, small], (384, 384), CPU).pixels
    assert torch.equal(in_batch, alone)


def test_padding_is_zero_for_the_network() -> None:
    white = np.full((100, 200, 3), 255, np.uint8)
    batch = Transform(SMALL)([white], (288, 384), CPU)
    assert batch.sizes.tolist() == [[192, 384]]
    assert batch.pixels[0, :, 192:].abs().max() == 0
    torch.testing.assert_close(batch.pixels[0, :, :192], torch.ones(3, 192, 384))  # (255 - 127) / 128


def test_each_image_keeps_its_own_size_on_a_shared_canvas() -> None:
    tall, square = np.zeros((384, 200, 3), np.uint8), np.zeros((50, 50, 3), np.uint8)
    batch = Transform(SMALL)([tall, square], (384, 384), CPU)
    assert batch.sizes.tolist() == [[384, 200], [384, 384]]
    assert batch.original_sizes.tolist() == [[384, 200], [50, 50]]


def test_the_papers_network_gets_bgr_less_the_mean() -> None:
    red = np.zeros((600, 600, 3), np.uint8)
    red[..., 0] = 255
    pixel = Transform(PAPER_VGG16.transform)([red], (608, 608), CPU).pixels[0, :, 0, 0]
    torch.testing.assert_close(pixel, torch.tensor([-102.9801, -115.9465, 255 - 122.7717]), atol=1e-3, rtol=0)


def test_shrinking_by_ten_does_not_alias() -> None:
    # Lines one pixel wide: without a low-pass, resizing would pick all white or all black.
    stripes = np.zeros((3840, 3840, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = Transform(SMALL)([stripes], (384, 384), CPU).pixels
    assert pixels[..., 20:-20].std() < 0.05
    assert abs(float(pixels.mean())) < 0.05


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), "uint8 array of shape"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
    ],
)
def test_what_is_no_image_is_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transform(SMALL)([image], (384, 384), CPU)


def test_an_image_that_does_not_fit_its_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Transform(SMALL)([np.zeros((384, 384, 3), np.uint8)], (288, 384), CPU)


def test_a_read_only_image_is_transformed_without_a_warning() -> None:
    image = np.full((384, 384, 3), 255, np.uint8)
    image.setflags(write=False)
    pixels = Transform(SMALL)([image], (384, 384), CPU).pixels
    torch.testing.assert_close(pixels, torch.ones(1, 3, 384, 384))
