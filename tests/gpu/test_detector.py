"""The whole detector on a pretended GPU: it runs, answers as on the CPU, and seldom makes the host wait."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import ResolvedCheckpoint
from model.config import PRESETS
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.rpn import RPN
from model.runtime.precision import float32_products, probe_image
from model.structures import DetectOptions, NotFiniteError
from tests.gpu.conftest import distance, noise
from tests.gpu.pretended import PretendedGPU, pretended_gpu

CLASSES = ("__background__", "cat", "dog")
NAMES = [config.name for config in PRESETS]
# Boxes in pixels, scores. fp32: the sums run in the same order; the antialiased resize rounds a value here and there
# otherwise. Short types: the bundled weights on a cat, whose box is 394 pixels wide.
LIMITS = {"fp32": (0.2, 1e-4), "tf32": (0.2, 1e-4), "fp16": (4.0, 0.02), "bf16": (16.0, 0.05)}


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    with pretended_gpu() as gpu:
        yield gpu


@pytest.fixture(scope="module")
def on_cpu() -> Detector:
    return Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")


@pytest.fixture
def on_gpu(gpu: PretendedGPU) -> Detector:
    return Detector.from_checkpoint("lite-voc20", device="cuda", precision="fp32")


@cache
def _network(name: str) -> FasterRCNN:
    """Make the network of a preset with random weights, for a short side of 96 pixels, 60 proposals, thin layers."""
    config = next(preset for preset in PRESETS if preset.name == name).with_classes(len(CLASSES))
    torch.manual_seed(0)
    transform = replace(config.transform, min_size=96, max_size=128)
    rpn = replace(config.rpn, pre_nms=150, post_nms=60)
    head = replace(config.roi_head, fc_channels=(64,) * len(config.roi_head.fc_channels))
    model = FasterRCNN(replace(config, transform=transform, rpn=rpn, roi_head=head)).eval()

    def to_unit_scale(layer: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        scale = output.std().clamp(min=1e-30)
        layer.weight /= scale  # type: ignore[operator]
        return output / scale

    # Random weights let values die away from layer to layer, or grow; a trained network's do neither.
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(to_unit_scale) for layer in layers]
    with torch.no_grad():
        maps = model.dense(torch.randn(1, 3, 96, 128)).maps
        model.roi_heads(maps, torch.tensor([[0.0, 0.0, 0.0, 64.0, 64.0], [0.0, 30.0, 20.0, 100.0, 90.0]]))
    for hook in hooks:
        hook.remove()
    return model


def small(name: str, device: str, precision: str = "fp32") -> Detector:
    """Make a detector of it; exact canvases leave out what makes a CPU's sums run in another order."""
    checkpoint = ResolvedCheckpoint(name="random", path=Path("random"), preset=name, classes=CLASSES)
    return Detector(deepcopy(_network(name)), checkpoint, device=device, precision=precision, canvas="exact")


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_answers_as_on_the_cpu_and_runs_in_half_precision(name: str, cat: np.ndarray) -> None:
    images = [cat, noise(61, 97), noise(1, 1)]
    options = DetectOptions(score_threshold=0.05, proposals=10)
    expected = small(name, "cpu").detect(images, options)
    assert any(right.proposals is not None and len(right.proposals) for right in expected)
    with pretended_gpu():
        exact = small(name, "cuda")
        answers = exact.detect(images, options)
        pixels = exact.transform([cat], exact.canvas_for(*cat.shape[:2]), exact.device).pixels
        right_logits = exact.model.dense(pixels).logits.cpu()
        for precision in ("fp16", "bf16"):
            rounded = small(name, "cuda", precision)
            logits = rounded.model.dense(pixels.to(rounded.dtype)).logits.float().cpu()
            off = (logits - right_logits).square().mean().sqrt() / right_logits.square().mean().sqrt()
            assert float(off) < 0.05
            [half] = rounded.detect([cat], DetectOptions(score_threshold=0.0, max_detections=5))
            assert 1 <= len(half) <= 5
    for answer, right in zip(answers, expected, strict=True):
        assert answer.proposals is not None
        assert right.proposals is not None
        assert answer.proposals.anchor_indices.tolist() == right.proposals.anchor_indices.tolist()
        torch.testing.assert_close(answer.proposals.boxes, right.proposals.boxes, atol=0.2, rtol=0)
        # Scores of random weights are nearly tied: boxes may change places.
        assert answer.class_ids.bincount().tolist() == right.class_ids.bincount().tolist()
        if len(right):
            assert float(torch.cdist(answer.boxes, right.boxes, p=math.inf).amin(dim=1).max()) <= 0.2


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_the_bundled_weights_find_the_cat_where_the_cpu_finds_it(
    precision: str, gpu: PretendedGPU, on_cpu: Detector, cat: np.ndarray
) -> None:
    [right] = on_cpu.detect([cat])
    [answer] = Detector.from_checkpoint("lite-voc20", device="cuda", precision=precision).detect([cat])
    assert right.labels == ("cat",)
    boxes, scores = distance(answer, right)
    assert boxes <= LIMITS[precision][0]
    assert scores <= LIMITS[precision][1]


@pytest.mark.parametrize("size", [(1, 1), (61, 977), (977, 61), (1, 500), (60_000, 1000)])
def test_images_of_any_shape_are_resized_as_on_the_cpu(
    size: tuple[int, int], on_gpu: Detector, on_cpu: Detector
) -> None:
    image = noise(*size) if size[0] < 60_000 else np.tile(noise(600, 10), (100, 100, 1))
    canvas = on_cpu.canvas_for(*size)
    right = on_cpu.transform([image], canvas, on_cpu.device).pixels
    pixels = on_gpu.transform([image], canvas, on_gpu.device).pixels.cpu()
    levels = (pixels - right).abs() * on_cpu.transform.std[None] * 255
    assert float(levels.max()) < (1.1 if size[0] < 60_000 else 4)  # the last takes two steps: another filter
    assert float(levels.mean()) < 0.5
    if size[0] < 60_000:
        on_gpu.detect([image])


def test_one_batch_may_mix_regions_classes_thresholds_and_proposals(
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
    for answer, right in zip(answers, expected, strict=True):
        assert distance(answer, right) <= LIMITS["fp32"]
        assert answer.proposal_indices.tolist() == right.proposal_indices.tolist()
    proposals, known = answers[1].proposals, expected[1].proposals
    assert proposals is not None
    assert known is not None
    assert proposals.anchor_indices.tolist() == known.anchor_indices.tolist()
    torch.testing.assert_close(proposals.boxes, known.boxes, atol=0.2, rtol=0)
    trace, other = answers[4].trace, expected[4].trace
    assert trace is not None
    assert other is not None
    for level, known_level in zip(trace.funnel(), other.funnel(), strict=True):
        assert level.after_size == known_level.after_size
        assert abs(level.after_nms - known_level.after_nms) <= 3  # the resize rounds a value here and there otherwise
    assert trace.found.tolist() == other.found.tolist()
    torch.testing.assert_close(trace.objectness, other.objectness, atol=0.01, rtol=0)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize(("name", "launches"), [("lite-voc20", 430), ("RESNET50_FPN", 465)])
def test_the_host_waits_four_times_whatever_the_batch(
    name: str, launches: int, count: int, gpu: PretendedGPU, cat: np.ndarray
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


def test_proposals_and_traces_come_with_the_same_copy(gpu: PretendedGPU, on_gpu: Detector, cat: np.ndarray) -> None:
    on_gpu.detect([cat] * 4, DetectOptions(trace=True, proposals=300))
    gpu.reset()
    on_gpu.detect([cat] * 4, DetectOptions(trace=True, proposals=300))
    assert gpu.wait_count <= 4, gpu.waits


def test_a_score_threshold_of_nothing_costs_a_bounded_number_of_waits(
    gpu: PretendedGPU, on_gpu: Detector, on_cpu: Detector, cat: np.ndarray
) -> None:
    options = DetectOptions(score_threshold=0.0, max_detections=1000)
    on_gpu.detect([cat] * 2, options)
    gpu.reset()
    [answer, _] = on_gpu.detect([cat] * 2, options)
    assert gpu.wait_count <= 16, gpu.waits
    [right] = on_cpu.detect([cat], options)
    assert len(answer) == len(right) == 1000
    torch.testing.assert_close(answer.scores, right.scores, atol=1e-3, rtol=0)


@pytest.mark.parametrize("part", ["map", "logit", "offset", "class logit", "class offset"])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_value_that_is_not_finite_fails_its_own_image(
    part: str, value: float, device: str, cat: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended_gpu():
        detector = small("LITE", device)
        model = detector.model

        def spoil(tensor: torch.Tensor, row: int) -> torch.Tensor:
            tensor = tensor.clone()
            tensor[(row, *(0,) * (tensor.dim() - 1))] = value
            return tensor

        backbone, head, classify = model.backbone.forward, model.rpn.head.forward, model.roi_heads.classify
        if part == "map":
            monkeypatch.setattr(model.backbone, "forward", lambda pixels: [spoil(m, 1) for m in backbone(pixels)])
        elif part in ("logit", "offset"):
            which = ("logit", "offset").index(part)
            monkeypatch.setattr(
                model.rpn.head,
                "forward",
                lambda maps: tuple(spoil(t, 1) if i == which else t for i, t in enumerate(head(maps))),
            )
        else:
            which = ("class logit", "class offset").index(part)
            monkeypatch.setattr(
                model.roi_heads,
                "classify",
                lambda pooled: tuple(
                    spoil(t, len(t) // 2) if i == which else t for i, t in enumerate(classify(pooled))
                ),
            )
        options = DetectOptions(score_threshold=0.3)
        expected = small("LITE", device).detect([cat, cat, cat], options)
        with pytest.raises(NotFiniteError, match=r"fp32 are not finite for 1 of 3 image\(s\)") as caught:
            detector.detect([cat, cat, cat], options)
        first, spoilt, last = caught.value.results
        assert spoilt is None
        assert first is not None
        assert last is not None
        assert distance(first, expected[0]) <= (1e-3, 1e-5)
        assert distance(last, expected[2]) <= (1e-3, 1e-5)


def test_fp16_that_overflows_fails_the_image_and_auto_does_not_choose_it(gpu: PretendedGPU, cat: np.ndarray) -> None:
    checkpoint = ResolvedCheckpoint(name="random", path=Path("random"), preset="LITE", classes=CLASSES)

    def loud() -> FasterRCNN:
        model = deepcopy(_network("LITE"))
        with torch.no_grad():
            model.rpn.head.conv[0][0].weight.mul_(1e7)  # type: ignore[index, operator, union-attr]
            model.rpn.head.cls_logits.weight.mul_(1e-7)
            model.rpn.head.bbox_pred.weight.mul_(1e-7)
        return model

    with pytest.raises(NotFiniteError, match=r"fp16 are not finite .* FRCNN_PRECISION=bf16 or fp32"):
        Detector(loud(), checkpoint, device="cuda", precision="fp16").detect([cat])
    detector = Detector(loud(), checkpoint, device="cuda", precision="auto")
    assert detector.precision == "bf16"
    assert "fp16 moves its answer by inf" in detector.info.engine_note
    detector.detect([cat])


@pytest.mark.parametrize(
    ("capability", "offered"), [((7, 5), {"fp32", "fp16"}), ((8, 0), {"fp32", "tf32", "bf16", "fp16"})]
)
def test_the_capability_says_which_precisions_there_are(capability: tuple[int, int], offered: set[str]) -> None:
    with pretended_gpu(capability):
        assert small("LITE", "cuda", "auto").precision == "fp16"
        for precision in ("fp32", "tf32", "bf16", "fp16", "int8"):
            if precision in offered:
                assert small("LITE", "cuda", precision).precision == precision
                continue
            with pytest.raises(ValueError, match=f"precision {precision} "):
                small("LITE", "cuda", precision)


def test_the_choice_is_said_with_what_was_measured(gpu: PretendedGPU) -> None:
    note = Detector.from_checkpoint("lite-voc20", device="cuda").info.engine_note
    assert "Precision fp16 was chosen for compute capability 9.0: fp16 moves its answer by" in note


def test_fp32_multiplies_float32_exactly_and_tf32_does_not(gpu: PretendedGPU) -> None:
    def now() -> tuple[str, str]:
        return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    device, before = torch.device("cuda"), now()
    with float32_products("tf32", device):
        assert now() == ("tf32", "tf32")
        with float32_products("fp32", device):  # another detector: exact is right for both
            assert now() == ("ieee", "ieee")
        assert now() == ("tf32", "tf32")
    assert now() == before
    with float32_products("fp32", torch.device("cpu")):
        assert now() == before


def test_the_image_to_measure_with_is_always_the_same() -> None:
    image = probe_image((64, 96))
    assert image.shape == (64, 96, 3)
    assert image.dtype == torch.uint8
    assert torch.equal(image, probe_image((64, 96)))
    assert image.float().std() > 30


def test_every_proposal_layer_is_exact_float32(gpu: PretendedGPU) -> None:
    detector = small("LITE", "cuda", "bf16")
    assert isinstance(detector.model.rpn, RPN)
    [answer] = detector.detect([noise(64, 64)], DetectOptions(proposals=5))
    assert answer.proposals is not None
    assert answer.proposals.boxes.dtype == answer.proposals.deltas.dtype == torch.float32
