"""The detector on a real GPU: the CPU's detections in every precision, and no wait of the host but for its events."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision import ops as tv_ops

from model.detector import Detector
from model.nms import PairwiseNMS, exact_threshold, nms_per_level
from model.presets import PRESETS
from model.roi_align import flatten_maps, map_shapes, roi_align_embedding_bag, table_layout
from model.runtime.precision import float32_products
from model.structures import DetectOptions
from model.transfer import download, upload
from tests.gpu.conftest import distance, noise

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
# Boxes in pixels, scores; of a cat that is 394 pixels wide.
LIMITS = {"fp32": (0.2, 1e-3), "tf32": (4.0, 0.02), "fp16": (4.0, 0.02), "bf16": (16.0, 0.05)}


@contextmanager
def no_hidden_wait() -> Iterator[None]:
    """Make torch raise where an operator makes the host wait. Waits for events, as in ``download``, are none."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def on_cpu() -> Detector:
    return Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def on_gpu() -> Detector:
    return Detector.from_checkpoint("lite-voc20", device="cuda", precision="fp32")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_the_bundled_weights_detect_the_cat_where_the_cpu_does(
    precision: str, on_cpu: Detector, cat: np.ndarray
) -> None:
    try:
        detector = Detector.from_checkpoint("lite-voc20", device="cuda", precision=precision)
    except ValueError as error:
        if "compute capability" not in str(error):
            raise
        pytest.skip(str(error))
    [reference], [answer] = on_cpu.detect([cat]), detector.detect([cat])
    boxes, scores = distance(answer, reference)
    assert boxes <= LIMITS[precision][0]
    assert scores <= LIMITS[precision][1]


@pytest.mark.parametrize(
    "options",
    [
        [DetectOptions(), DetectOptions(score_threshold=0.01, nms_threshold=0.3, proposals=7, class_ids=(8, 3))],
        [DetectOptions(trace=True), DetectOptions(regions=((9.0, 4.0, 403.0, 300.0),))],
    ],
    ids=["options", "a trace and regions"],
)
def test_a_batch_makes_the_host_wait_for_nothing_but_our_own_events(
    on_gpu: Detector, cat: np.ndarray, options: list[DetectOptions]
) -> None:
    on_gpu.detect([cat] * 2, options)  # constants are copied at the first time
    with no_hidden_wait():
        on_gpu.detect([cat] * 2, options)


@pytest.mark.parametrize("name", [config.name for config in PRESETS])
def test_every_preset_detects_at_its_own_size(name: str, cat: np.ndarray) -> None:
    detector = Detector.random(name, device="cuda")
    answers = detector.detect([cat] * 2, DetectOptions(score_threshold=0.0, max_detections=5))
    assert [len(answer) for answer in answers] == [5, 5]


@pytest.mark.parametrize("size", [(1, 1), (61, 977), (977, 61), (1, 500), (60_000, 1000), (600_000, 10)])
def test_images_of_any_shape_are_resized_as_on_the_cpu(
    size: tuple[int, int], on_gpu: Detector, on_cpu: Detector
) -> None:
    image = noise(*size) if size[0] < 60_000 else np.tile(noise(600, 10), (size[0] // 600, size[1] // 10, 1))
    canvas = on_cpu.canvas_for(*size)
    reference = on_cpu.transform([image], canvas, on_cpu.device).pixels
    levels = (on_gpu.transform([image], canvas, CUDA).pixels.cpu() - reference).abs() * on_cpu.transform.std[None] * 255
    assert float(levels.max()) < (1.1 if size[0] < 60_000 else 4)
    assert float(levels.mean()) < 0.5


def test_nms_keeps_the_boxes_that_the_cpu_keeps() -> None:
    corner, side = torch.rand(8, 3000, 2) * 600, torch.rand(8, 3000, 2) * 200
    boxes = torch.cat((corner, corner + side), dim=2)
    counts = (1000, 1000, 1000)
    scores = torch.cat([torch.rand(8, count).sort(dim=1, descending=True).values for count in counts], dim=1)
    valid = torch.rand(8, 3000) > 0.1
    expected = nms_per_level(boxes, valid, scores, counts, 0.7)
    answers = nms_per_level(boxes.to(CUDA), valid.to(CUDA), scores.to(CUDA), counts, 0.7)
    assert [answer.tolist() for answer in answers] == [reference.tolist() for reference in expected]


def test_nms_of_a_chain_of_boxes_is_iterated_until_it_has_converged() -> None:
    left = torch.arange(1000.0) * 5
    chain = torch.stack((left, torch.zeros(1000), left + 10, torch.ones(1000)), dim=1)
    threshold = torch.tensor([exact_threshold(0.3)], device=CUDA)
    pairs = PairwiseNMS(chain[None].to(CUDA), torch.ones(1, 1000, dtype=torch.bool, device=CUDA), threshold)
    done = False
    while not done:
        keep, converged = pairs.advance(50)
        done = bool(converged)
    assert keep[0].tolist() == [True, False] * 500


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pooling_is_torchvisions(dtype: torch.dtype) -> None:
    level = torch.randn(1, 16, 40, 60, device=CUDA, dtype=dtype).contiguous(memory_format=torch.channels_last)
    corner, side = torch.rand(50, 2) * 200, torch.rand(50, 2) * 200 + 1
    regions = torch.cat((torch.zeros(50, 1), corner, corner + side), dim=1).to(CUDA)
    expected = tv_ops.roi_align(level.float(), regions, 7, 1 / 8, 2, aligned=False)
    levels = torch.zeros(50, dtype=torch.int64, device=CUDA)
    layout = table_layout(map_shapes([level]), 1, CUDA)
    pooled = roi_align_embedding_bag(flatten_maps([level]), layout, (1 / 8,), regions, levels, 7, 2).permute(0, 3, 1, 2)
    torch.testing.assert_close(pooled.float(), expected, atol=1e-4 if dtype == torch.float32 else 0.02, rtol=1e-2)


@pytest.mark.parametrize("name", ["LITE", "PAPER_VGG16"])
def test_no_candidates_and_no_regions_do_not_make_the_host_wait(name: str, cat: np.ndarray) -> None:
    detector = Detector.random(name, device="cuda", precision="fp16")
    options = [DetectOptions(score_threshold=1.0), DetectOptions(regions=())]
    detector.detect([cat] * 2, options)
    with no_hidden_wait():
        answers = detector.detect([cat] * 2, options)
    assert [len(answer) for answer in answers] == [0, 0]


def test_fp32_multiplies_float32_exactly_and_tf32_does_not() -> None:
    if torch.cuda.get_device_capability(CUDA) < (8, 0):
        pytest.skip("this GPU has no TF32")
    image, weight = torch.randn(1, 64, 32, 32, device=CUDA), torch.randn(64, 64, 3, 3, device=CUDA)
    matrix = torch.randn(512, 512, device=CUDA)
    exact = F.conv2d(image.double(), weight.double()), matrix.double() @ matrix.double()
    for precision, low, high in (("fp32", 0, 1e-5), ("tf32", 1e-4, 1e-2)):
        with float32_products(precision, CUDA):
            answers = F.conv2d(image, weight), matrix @ matrix
        for answer, expected in zip(answers, exact, strict=True):
            error = (answer - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            assert low <= float(error) <= high


def test_uploaded_values_are_downloaded_as_they_were() -> None:
    with no_hidden_wait():
        numbers = upload([[1, 2, 3]], torch.int64, CUDA)
        flags = upload(np.array([True, False]), torch.bool, CUDA)
        halves = upload([0.5], torch.float16, CUDA)
        downloaded = download(flags, numbers[:, ::2], halves, numbers[:, :0])
    assert [tensor.tolist() for tensor in downloaded] == [[True, False], [[1, 3]], [0.5], [[]]]
    assert [tensor.dtype for tensor in downloaded] == [torch.bool, torch.int64, torch.float16, torch.int64]
