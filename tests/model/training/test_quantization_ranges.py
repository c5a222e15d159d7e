"""The ranges that int8 needs are recorded over all images and written beside the weights."""

from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import read_quantization_ranges, resolve
from model.detector import Detector
from model.runtime.cpu.int8.quantize import quantizable_layers
from model.training.quantization_ranges import record_ranges, write_quantization_ranges


def test_the_ranges_of_all_layers_are_written_beside_the_weights(saved: Path) -> None:
    detector = Detector.from_checkpoint(saved, precision="fp32")
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    file, layers = write_quantization_ranges(detector, [image])
    assert file == saved.with_name("mine.ranges.json")
    assert layers == len(quantizable_layers(detector.model))
    with record_ranges(detector.model) as ranges:
        detector.detect([image])
    for name, (low, high) in read_quantization_ranges(resolve(saved)).items():
        assert (low, high) == pytest.approx(ranges[name], rel=1e-3)
    assert Detector.from_checkpoint(saved, precision="int8").detect([image])


def test_a_range_grows_over_all_images() -> None:
    detector = Detector.random("LITE", device="cpu", precision="fp32")
    images = [np.full((60, 60, 3), value, np.uint8) for value in (0, 255)]
    with record_ranges(detector.model) as both:
        detector.detect(images)
    for image in images:
        with record_ranges(detector.model) as one_image:
            detector.detect([image])
        assert all(
            both[name][0] <= low + 1e-4 and high - 1e-4 <= both[name][1] for name, (low, high) in one_image.items()
        )


def test_ranges_are_measured_in_float32_and_on_images() -> None:
    with pytest.raises(ValueError, match="in fp32"):
        write_quantization_ranges(Detector.random("LITE", precision="bf16"), [])
    with pytest.raises(ValueError, match="no images"):
        write_quantization_ranges(Detector.random("LITE", precision="fp32"), [])
