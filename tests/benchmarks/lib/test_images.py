import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.lib.images import MIXED_SIZES, drawn_image, mixed_jpegs, photographs, size_for
from model.presets import LITE, RESNET50_FPN
from model.runtime.buckets import Buckets


@pytest.mark.parametrize(
    ("config", "canvas"), [(RESNET50_FPN, (800, 1088)), (RESNET50_FPN, (800, 1344)), (LITE, (384, 480))]
)
def test_images_are_of_exactly_the_canvas_that_is_named(config: Any, canvas: tuple[int, int]) -> None:
    height, width = size_for(canvas, Buckets(config.transform).canvas_for)
    assert Buckets(config.transform).canvas_for(height, width) == canvas
    assert Buckets(config.transform, "exact").canvas_for(height, width) == canvas  # as torchvision pads it


def test_a_drawn_image_is_the_same_for_the_same_seed() -> None:
    assert np.array_equal(drawn_image(300, 400, 1), drawn_image(300, 400, 1))
    assert drawn_image(300, 400, 1).std() > 20


def test_files_and_photographs_have_the_sizes_that_are_named() -> None:
    assert [Image.open(io.BytesIO(body)).size for body in mixed_jpegs(len(MIXED_SIZES))] == list(MIXED_SIZES)
    assert {image.shape for image in photographs(3)} == {(480, 640, 3)}
