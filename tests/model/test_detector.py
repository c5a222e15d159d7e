"""The facade: lists of images in, lists of detections out."""

import numpy as np
import pytest
import torch

from model.detector import Detector
from model.structures import DetectOptions

CLASSES = ("__background__", "circle", "square", "star")


@pytest.fixture(scope="module")
def detector() -> Detector:
    # Random weights score all classes alike: a quarter each, far above this threshold.
    return Detector.random("LITE", classes=CLASSES, precision="fp32")


def _image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_there_are_detections_for_each_image_in_order(detector: Detector) -> None:
    sizes = [(120, 160), (160, 120), (120, 160), (33, 400), (1, 1)]
    results = detector.detect([_image(*size) for size in sizes])
    assert [answer.batch_size for answer in results] == [2, 1, 2, 1, 1]
    for (height, width), answer in zip(sizes, results, strict=True):
        assert answer.boxes.shape == (len(answer), 4)
        if len(answer):
            assert answer.boxes[:, 2].max() <= width + 1e-3
            assert answer.boxes[:, 3].max() <= height + 1e-3
            assert answer.boxes.min() >= 0
        assert answer.scores.tolist() == sorted(answer.scores.tolist(), reverse=True)
        assert answer.labels == tuple(CLASSES[i] for i in answer.class_ids.tolist())


def test_no_images_give_no_detections(detector: Detector) -> None:
    assert detector.detect([]) == []


def test_options_differ_from_image_to_image_in_one_batch(detector: Detector) -> None:
    image = _image(120, 160)
    options = [
        DetectOptions(max_detections=3),
        DetectOptions(class_ids=(2,)),
        DetectOptions(score_threshold=1.0),
        DetectOptions(proposals=5),
        DetectOptions(nms_threshold=0.0),
    ]
    few, squares, none, proposals, apart = detector.detect([image] * 5, options)
    assert few.batch_size == 5
    assert len(few) == 3
    assert set(squares.labels) == {"square"}
    assert len(none) == 0
    assert proposals.proposals is not None
    assert len(proposals.proposals) == 5
    assert few.proposals is None
    assert len(apart) < len(proposals)


def test_a_detection_names_the_proposal_it_came_from(detector: Detector) -> None:
    (detections,) = detector.detect([_image(300, 400)], DetectOptions(proposals=1000))
    assert detections.proposals is not None
    assert detections.proposal_indices.max() < len(detections.proposals)
    # The fresh predictor hardly moves a box: each detection lies on its proposal.
    parents = detections.proposals.boxes[detections.proposal_indices]
    torch.testing.assert_close(detections.boxes, parents, atol=4.0, rtol=0.05)


def test_detections_do_not_depend_on_the_other_images_of_the_batch(detector: Detector) -> None:
    # The canvas depends on the image alone; sums in fp32 may differ in their last bits.
    image = _image(180, 240, seed=1)
    (alone,) = detector.detect([image])
    among = detector.detect([_image(210, 280, seed=2), image, _image(150, 200, seed=3)])[1]
    assert among.batch_size == 3
    assert among.class_ids.tolist() == alone.class_ids.tolist()
    torch.testing.assert_close(among.boxes, alone.boxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DetectOptions(score_threshold=1.5), "score_threshold must be between 0 and 1"),
        (DetectOptions(nms_threshold=-0.1), "nms_threshold must be between 0 and 1"),
        (DetectOptions(max_detections=0), "max_detections must be at least 1"),
        (DetectOptions(proposals=-1), "proposals must be 0 or more"),
        (DetectOptions(class_ids=(4,)), "no class 4: ids run from 1 to 3"),
        (DetectOptions(class_ids=(0,)), "no class 0"),
    ],
)
def test_an_option_out_of_range_is_refused(detector: Detector, options: DetectOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector.detect([_image(50, 50)], options)


def test_options_must_be_one_or_one_each(detector: Detector) -> None:
    with pytest.raises(ValueError, match="1 options for 2 images"):
        detector.detect([_image(50, 50)] * 2, [DetectOptions()])


def test_what_is_no_image_is_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match="uint8 array"):
        detector.detect([np.zeros((5, 5), np.uint8)])


def test_the_stages_are_timed(detector: Detector) -> None:
    (detections,) = detector.detect([_image(50, 50)])
    assert set(detections.timings) == {"transform", "backbone", "rpn", "roi_head", "postprocess"}
    assert all(seconds >= 0 for seconds in detections.timings.values())


def test_the_info_describes_the_detector(detector: Detector) -> None:
    info = detector.info
    assert info.preset == "LITE"
    assert info.classes == CLASSES
    assert info.parameters < 8_000_000
    assert (384, 480) in info.canvases
    assert [level["stride"] for level in info.anchors] == [8, 16, 32]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"device": "tpu"}, "device must be"),
        ({"precision": "int4"}, "precision must be"),
        ({"precision": "fp16", "device": "cpu"}, "fp16 is for GPUs"),
        ({"precision": "int8", "device": "cpu"}, "No range is known"),
        ({"canvas": "round"}, "canvas must be"),
    ],
)
def test_an_argument_out_of_range_is_refused(argument: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detector.random("LITE", **argument)


def test_bf16_gives_nearly_the_same_proposals() -> None:
    image = _image(300, 400)
    exact = Detector.random("LITE", classes=CLASSES, precision="fp32", device="cpu")
    short = Detector.random("LITE", classes=CLASSES, precision="bf16", device="cpu")
    options = DetectOptions(proposals=20)
    a, b = exact.detect([image], options)[0], short.detect([image], options)[0]
    assert a.proposals is not None
    assert b.proposals is not None
    assert b.boxes.dtype == torch.float32
    torch.testing.assert_close(a.proposals.objectness, b.proposals.objectness, atol=2e-2, rtol=0)


@pytest.mark.gpu
def test_a_gpu_detects_as_the_cpu() -> None:
    image = _image(300, 400)
    answers = [
        Detector.random("LITE", classes=CLASSES, precision="fp32", device=device).detect([image])[0]
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(answers[0].scores, answers[1].scores, atol=1e-4, rtol=0)


def test_an_image_decoded_smaller_is_answered_in_its_own_pixels(detector: Detector) -> None:
    # An image of whole 4 x 4 blocks: a quarter of its rows and columns say all there is.
    small = _image(300, 400)
    whole = small.repeat(4, axis=0).repeat(4, axis=1)
    (full,) = detector.detect([whole], DetectOptions(proposals=20))
    (reduced,) = detector.detect([small], DetectOptions(proposals=20, full_size=(1200, 1600)))
    assert full.proposals is not None
    assert reduced.proposals is not None
    assert reduced.boxes[:, 2].max() > 1000
    torch.testing.assert_close(reduced.proposals.boxes[:3], full.proposals.boxes[:3], atol=8.0, rtol=0)


def test_the_full_size_alone_decides_the_canvas(detector: Detector) -> None:
    # The small one's rounded sides are a square's, the image's are not.
    options = [DetectOptions(), DetectOptions(full_size=(300, 400))]
    alone, other = detector.detect([_image(100, 100), _image(100, 100)], options)
    assert (alone.batch_size, other.batch_size) == (1, 1)


def test_a_full_size_of_nothing_is_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match="full_size"):
        detector.detect([_image(10, 10)], DetectOptions(full_size=(0, 10)))


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([[1, 2, 3]], "shape"),
        ([[5, 5, 5, 9]], "x1 < x2"),
        ([[0, 0, float("nan"), 9]], "x1 < x2"),
    ],
)
def test_regions_that_are_no_boxes_are_refused(detector: Detector, regions: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector.detect([_image(180, 240)], regions=[regions])


def test_regions_with_a_trace_or_proposals_are_refused(detector: Detector) -> None:
    for options in (DetectOptions(trace=True), DetectOptions(proposals=3)):
        with pytest.raises(ValueError, match="the RPN does not run"):
            detector.detect([_image(180, 240)], options, [[[0, 0, 9, 9]]])


def test_regions_must_be_one_list_an_image(detector: Detector) -> None:
    with pytest.raises(ValueError, match="Regions for 2 images, and there are 1"):
        detector.detect([_image(180, 240)], regions=[None, None])
