"""An image's answer does not depend on its batch: the bundled weights, over hundreds of mixes.

On a small canvas with few proposals, for speed; the benchmark does the same at the size that is served.
"""

from dataclasses import replace

import pytest
import torch

from benchmarks.engine.batch_invariance import difference, mixes, photographs, survey
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.structures import Detections

FP32_PIXELS = 1e-3
# The products are rounded to 8 bits before they are summed: a sum in another order may differ in its last one.
BF16_PIXELS = 2.0


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def detector(request: pytest.FixtureRequest) -> Detector:
    large = Detector.from_checkpoint("lite-voc20", precision="fp32", device="cpu")
    transform = replace(large.config.transform, min_size=128, max_size=128)
    config = replace(large.config, transform=transform, rpn=replace(large.config.rpn, pre_nms=100, post_nms=50))
    small = FasterRCNN(config)
    small.load_state_dict(large.model.state_dict())
    return Detector(small, large.checkpoint, precision=request.param, device="cpu")


@pytest.mark.slow
def test_alone_among_copies_and_among_others_the_answer_is_the_same(detector: Detector) -> None:
    sharp = detector.precision == "fp32"
    by_batch = survey(detector, photographs(), count=200 if sharp else 50, most=4)
    for where, total in by_batch.items():
        assert total.detections >= 20, where
        assert total.pixels <= (FP32_PIXELS if sharp else BF16_PIXELS), (where, total)
        assert total.changed <= (0 if sharp else 0.02 * total.detections), (where, total)
    assert by_batch["among others"].images >= (400 if sharp else 100)


def test_a_mix_is_of_one_canvas_and_of_two_images_or_more() -> None:
    canvases = [(1, 1), (2, 2), (1, 1), (2, 2), (2, 2)]
    drawn = list(mixes(canvases, 100, most=5))
    assert {len({canvases[i] for i in mix}) for mix in drawn} == {1}
    assert {len(mix) for mix in drawn} == {2, 3, 4, 5}


def _answer(*boxes: list[float], kind: int = 1) -> Detections:
    count = len(boxes)
    return Detections(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.full((count,), 0.5),
        class_ids=torch.full((count,), kind),
        labels=("cat",) * count,
        proposal_indices=torch.zeros(count, dtype=torch.long),
    )


def test_a_box_that_moved_comes_or_goes_is_seen() -> None:
    right = _answer([0, 0, 10, 10], [20, 20, 30, 30])
    assert difference(right, right).pixels == 0
    assert difference(right, _answer([20, 20, 30, 30], [0, 0, 10, 10])).changed == 0  # in another order
    assert difference(right, _answer([0, 0, 10, 10.5], [20, 20, 30, 30])).pixels == 0.5
    assert difference(right, _answer([0, 0, 10, 10])).changed == 1
    assert difference(_answer([0, 0, 10, 10]), right).changed == 1
    assert difference(right, _answer([0, 0, 10, 10], [20, 20, 30, 30], kind=2)).changed == 4
