"""The whole detector on a simulated GPU: the CPU's detections, with few waits of the host."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from model.detector import Detector
from model.presets import PRESETS
from model.rpn import RPN
from model.structures import DetectOptions
from tests.gpu.conftest import distance, noise
from tests.gpu.networks import small
from tests.gpu.simulated_gpu import SimulatedGPU, simulated_gpu

NAMES = [config.name for config in PRESETS]
# Boxes in pixels, scores. fp32: the sums run in the same order; the antialiased resize rounds a value here and there
# otherwise. Short types: the bundled weights on a cat, whose box is 394 pixels wide.
LIMITS = {"fp32": (0.2, 1e-4), "tf32": (0.2, 1e-4), "fp16": (4.0, 0.02), "bf16": (16.0, 0.05)}


@pytest.fixture
def gpu() -> Iterator[SimulatedGPU]:
    with simulated_gpu() as gpu:
        yield gpu


@pytest.fixture(scope="module")
def on_cpu() -> Detector:
    return Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")


@pytest.fixture
def on_gpu(gpu: SimulatedGPU) -> Detector:
    return Detector.from_checkpoint("lite-voc20", device="cuda", precision="fp32")


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_detects_as_on_the_cpu_and_nearly_so_in_half_precision(name: str, cat: np.ndarray) -> None:
    images, options = [cat, noise(1, 1)], DetectOptions(score_threshold=0.05, trace=True)
    expected = small(name, "cpu").detect(images, options)
    with simulated_gpu():
        answers = small(name, "cuda").detect(images, options)
        halves = [small(name, "cuda", precision).detect([cat], options)[0] for precision in ("fp16", "bf16")]
    for answer, reference in zip(answers, expected, strict=True):
        assert answer.trace is not None
        assert reference.trace is not None
        torch.testing.assert_close(answer.trace.objectness, reference.trace.objectness, atol=5e-3, rtol=0)
        kept = answer.trace.candidates[answer.trace.final_rows]
        known = reference.trace.candidates[reference.trace.final_rows]
        # Scores of random weights are nearly tied: boxes may swap ranks, and one may suppress another.
        assert _without_partner(kept.boxes, known.boxes) <= 1
        assert _without_partner(answer.boxes, reference.boxes) <= 2  # one of each class
        assert abs(len(answer) - len(reference)) <= 2
    for half in halves:
        assert half.trace is not None
        assert answers[0].trace is not None
        assert float((half.trace.objectness - answers[0].trace.objectness).abs().mean()) < 0.02


def _without_partner(boxes: torch.Tensor, others: torch.Tensor) -> int:
    """Count the boxes with none of ``others`` within 0.2 pixels at each side."""
    if not len(boxes) or not len(others):
        return len(boxes)
    return int((torch.cdist(boxes, others, p=math.inf).amin(dim=1) > 0.2).sum())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_the_bundled_weights_detect_the_cat_where_the_cpu_does(
    precision: str, gpu: SimulatedGPU, on_cpu: Detector, cat: np.ndarray
) -> None:
    [reference] = on_cpu.detect([cat])
    [answer] = Detector.from_checkpoint("lite-voc20", device="cuda", precision=precision).detect([cat])
    assert reference.labels == ("cat",)
    boxes, scores = distance(answer, reference)
    assert boxes <= LIMITS[precision][0]
    assert scores <= LIMITS[precision][1]


@pytest.mark.parametrize("size", [(1, 1), (61, 977), (977, 61), (1, 500), (60_000, 1000)])
def test_images_of_any_shape_are_resized_as_on_the_cpu(
    size: tuple[int, int], on_gpu: Detector, on_cpu: Detector
) -> None:
    image = noise(*size) if size[0] < 60_000 else np.tile(noise(600, 10), (100, 100, 1))
    canvas = on_cpu.canvas_for(*size)
    reference = on_cpu.transform([image], canvas, on_cpu.device).pixels
    pixels = on_gpu.transform([image], canvas, on_gpu.device).pixels.cpu()
    levels = (pixels - reference).abs() * on_cpu.transform.std[None] * 255
    assert float(levels.max()) < (1.1 if size[0] < 60_000 else 4)  # the last takes two steps: another filter
    assert float(levels.mean()) < 0.5
    if size[0] < 60_000:
        on_gpu.detect([image])


def test_one_call_may_mix_regions_classes_thresholds_and_proposals(
    on_gpu: Detector, on_cpu: Detector, cat: np.ndarray
) -> None:
    options = [
        DetectOptions(),
        DetectOptions(score_threshold=0.01, nms_threshold=0.2, proposals=7),
        DetectOptions(score_threshold=0.01, nms_threshold=0.9, class_ids=(8, 12), max_detections=3),
        DetectOptions(regions=((9.0, 4.0, 403.0, 300.0), (0.0, 0.0, 40.0, 40.0))),
        DetectOptions(score_threshold=0.05, trace=True),
        DetectOptions(regions=()),
    ]
    answers, expected = on_gpu.detect([cat] * 6, options), on_cpu.detect([cat] * 6, options)
    for answer, reference in zip(answers, expected, strict=True):
        assert distance(answer, reference) <= LIMITS["fp32"]
        assert answer.proposal_indices.tolist() == reference.proposal_indices.tolist()
    proposals, known = answers[1].proposals, expected[1].proposals
    assert proposals is not None
    assert known is not None
    assert proposals.anchor_indices.tolist() == known.anchor_indices.tolist()
    torch.testing.assert_close(proposals.boxes, known.boxes, atol=0.2, rtol=0)
    trace, other = answers[4].trace, expected[4].trace
    assert trace is not None
    assert other is not None
    for level, known_level in zip(trace.stage_counts(), other.stage_counts(), strict=True):
        assert level.after_size == known_level.after_size
        assert abs(level.after_nms - known_level.after_nms) <= 3  # the resize rounds a value here and there otherwise
    assert trace.detected_pairs.tolist() == other.detected_pairs.tolist()
    torch.testing.assert_close(trace.objectness, other.objectness, atol=0.01, rtol=0)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize(("name", "launches"), [("lite-voc20", 430), ("RESNET50_FPN", 465)])
def test_the_host_waits_four_times_for_a_batch_of_any_size(
    name: str, launches: int, count: int, gpu: SimulatedGPU, cat: np.ndarray
) -> None:
    if name == "lite-voc20":
        detector = Detector.from_checkpoint(name, device="cuda", precision="fp32")
    else:
        detector = small(name, "cuda")
    detector.detect([cat] * count)  # constants are copied at the first time
    gpu.reset()
    detector.detect([cat] * count)
    assert gpu.wait_count <= 4, gpu.waits
    # Each image adds its upload and its resize.
    assert gpu.launches <= launches + 12 * count


def test_proposals_and_traces_need_no_further_wait(gpu: SimulatedGPU, on_gpu: Detector, cat: np.ndarray) -> None:
    on_gpu.detect([cat] * 2, DetectOptions(trace=True, proposals=300))
    gpu.reset()
    on_gpu.detect([cat] * 2, DetectOptions(trace=True, proposals=300))
    assert gpu.wait_count <= 4, gpu.waits


def test_a_score_threshold_of_zero_costs_a_bounded_number_of_waits(
    gpu: SimulatedGPU, on_gpu: Detector, on_cpu: Detector, cat: np.ndarray
) -> None:
    options = DetectOptions(score_threshold=0.0, max_detections=1000)
    on_gpu.detect([cat] * 2, options)
    gpu.reset()
    [answer, _] = on_gpu.detect([cat] * 2, options)
    assert gpu.wait_count <= 16, gpu.waits
    [reference] = on_cpu.detect([cat], options)
    assert len(answer) == len(reference) == 1000
    torch.testing.assert_close(answer.scores, reference.scores, atol=1e-3, rtol=0)


def test_proposals_of_a_network_in_bf16_are_float32(gpu: SimulatedGPU) -> None:
    detector = small("LITE", "cuda", "bf16")
    assert isinstance(detector.model.rpn, RPN)
    [answer] = detector.detect([noise(64, 64)], DetectOptions(proposals=5))
    assert answer.proposals is not None
    assert answer.proposals.boxes.dtype == answer.proposals.deltas.dtype == torch.float32
