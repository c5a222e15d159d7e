"""Live parity with torchvision's four Faster R-CNNs: the same random state dict, the same boxes.

In float32, on several seeds, on small, large, thin and mixed-size images: boxes to 0.02 px, scores to 1e-4, the same
labels and the same count; the RPN's proposals and objectness likewise. ``comparison.compare`` says what a tie is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torchvision.models.detection.faster_rcnn import FasterRCNN as Reference

from model.checkpoint import ResolvedCheckpoint
from model.config import DetectorConfig
from model.detector import DetectOptions, Detector
from model.faster_rcnn import FasterRCNN
from model.structures import ImageArray
from model.transform import resized_size
from tests.parity.comparison import Answer, Difference, compare
from tests.parity.reference import PUBLISHED, answer_on_canvas, make_image, make_pair, run_model, run_torchvision

# Half the published size and less: the same arithmetic at a tenth of the work.
SMALL = (256, 448)
# Proposals kept by both in the fast tests; None for the published number. v2 runs four convolutions on each.
FEW = {"RESNET50_FPN": None, "RESNET50_FPN_V2": 150, "MOBILENET_V3_FPN": None, "MOBILENET_V3_320": None}
SHAPES = {"medium": (240, 320), "small": (40, 33), "large": (700, 1100), "thin": (60, 400)}


def assert_parity(answers: Sequence[Answer], reference: Sequence[Answer], settings: DetectorConfig) -> Difference:
    """Raise ``AssertionError`` unless all answers agree within the limits; return the largest differences."""
    worst = Difference()
    for answer, expected in zip(answers, reference, strict=True):
        worst |= compare(answer, expected, settings)
    assert worst.boxes < 0.02, worst
    assert worst.scores < 1e-4, worst
    assert worst.proposals < 0.02, worst
    assert worst.objectness < 1e-4, worst
    return worst


def assert_many_detections(answers: Sequence[Answer]) -> None:
    """Raise ``AssertionError`` where there are too few boxes or classes for a comparison to mean anything."""
    assert sum(len(answer.boxes) for answer in answers) >= 20 * len(answers)
    assert len(torch.cat([answer.labels for answer in answers]).unique()) > 2


def run_each_alone(
    reference: Reference, model: FasterRCNN, images: Sequence[ImageArray]
) -> tuple[list[Answer], list[Answer]]:
    """Return the model's answers and torchvision's, for each image in a batch of its own."""
    return [run_model(model, [image])[0] for image in images], [
        run_torchvision(reference, [image])[0] for image in images
    ]


@pytest.mark.parametrize(
    ("preset", "seed"),
    [
        ("RESNET50_FPN", 0),
        ("RESNET50_FPN", 1),
        ("RESNET50_FPN", 2),
        ("RESNET50_FPN_V2", 0),
        ("MOBILENET_V3_FPN", 0),
        ("MOBILENET_V3_FPN", 1),
        ("MOBILENET_V3_320", 0),
        ("MOBILENET_V3_320", 1),
    ],
)
def test_images_in_batches_of_their_own(preset: str, seed: int) -> None:
    reference, model = make_pair(preset, seed, sizes=SMALL, post_nms=FEW[preset])
    images = [make_image(height, width, 10 * seed + i) for i, (height, width) in enumerate(SHAPES.values())]
    answers, expected = run_each_alone(reference, model, images)
    assert_many_detections(expected)
    assert_parity(answers, expected, model.config)


@pytest.mark.parametrize("preset", PUBLISHED)
def test_mixed_sizes_on_one_canvas(preset: str) -> None:
    # On the canvas that torchvision makes for the batch, which is not the one that the service would choose.
    reference, model = make_pair(preset, 0, sizes=SMALL, post_nms=FEW[preset])
    images = [make_image(200, 300, 1), make_image(300, 200, 2), make_image(100, 400, 3)]
    expected = run_torchvision(reference, images)
    assert_many_detections(expected)
    assert_parity(run_model(model, images), expected, model.config)


@pytest.mark.parametrize(
    "preset",
    [
        "RESNET50_FPN",
        "MOBILENET_V3_320",
        pytest.param("RESNET50_FPN_V2", marks=pytest.mark.slow),
        pytest.param("MOBILENET_V3_FPN", marks=pytest.mark.slow),
    ],
)
def test_at_the_published_size(preset: str) -> None:
    reference, model = make_pair(preset, 0)
    answers, expected = run_each_alone(reference, model, [make_image(480, 640, 5)])
    assert len(expected[0].boxes) >= 10
    assert_parity(answers, expected, model.config)


@pytest.mark.parametrize("preset", ["RESNET50_FPN", "MOBILENET_V3_320"])
def test_a_state_dict_with_the_keys_of_torchvision_0_13(preset: str) -> None:
    reference, model = make_pair(preset, 0, sizes=SMALL, old_keys=True)
    answers, expected = run_each_alone(reference, model, [make_image(240, 320, 0)])
    assert_parity(answers, expected, model.config)


@pytest.mark.parametrize(
    ("preset", "classes"), [("RESNET50_FPN", 2), ("RESNET50_FPN_V2", 21), ("MOBILENET_V3_FPN", 21)]
)
def test_other_class_counts(preset: str, classes: int) -> None:
    reference, model = make_pair(preset, 0, sizes=SMALL, post_nms=FEW[preset], num_classes=classes)
    answers, expected = run_each_alone(reference, model, [make_image(240, 320, 0), make_image(320, 240, 1)])
    assert sum(len(answer.boxes) for answer in expected) >= 20
    assert_parity(answers, expected, model.config)


def test_the_facade_gives_each_image_what_torchvision_gives_it_alone() -> None:
    reference, model = make_pair("RESNET50_FPN", 0, sizes=SMALL)
    names = tuple(f"class {i}" for i in range(model.config.num_classes))
    checkpoint = ResolvedCheckpoint(name="random", path=Path("random"), preset=None, classes=names)
    detector = Detector(model, checkpoint, device="cpu", precision="fp32", canvas="exact")
    images = [make_image(240, 320, 0), make_image(90, 60, 1), make_image(240, 320, 2)]
    _, expected = run_each_alone(reference, model, images)
    options = DetectOptions(proposals=model.config.rpn.post_nms)
    answers = []
    for image, detections in zip(images, detector.detect(images, options), strict=True):
        assert detections.labels == tuple(names[i] for i in detections.class_ids.tolist())
        original = torch.tensor(image.shape[:2])
        resized = torch.tensor(resized_size(model.config.transform, *image.shape[:2]))
        answers.append(answer_on_canvas(detections, resized, original))
    assert_many_detections(expected)
    assert_parity(answers, expected, model.config)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PUBLISHED)
def test_many_images(preset: str) -> None:
    # Each image has another size. With FRCNN_PARITY_IMAGES=20, pytest -s prints the figures of the documentation.
    worst, count, images_per_seed = Difference(), 0, int(os.environ.get("FRCNN_PARITY_IMAGES", "6"))
    for seed in range(4):
        reference, model = make_pair(preset, seed, sizes=SMALL, post_nms=FEW[preset])
        sides = torch.randint(30, 700, (images_per_seed, 2), generator=torch.Generator().manual_seed(seed)).tolist()
        images = [make_image(height, width, 100 * seed + i) for i, (height, width) in enumerate(sides)]
        answers, expected = run_each_alone(reference, model, images)
        assert_many_detections(expected)
        worst |= assert_parity(answers, expected, model.config)
        count += len(images)
    print(f"{preset}: {count} images: {worst}")
