"""Precision on a simulated GPU: what is offered, what is chosen, and what values that are not finite lead to."""

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch

from model.checkpoint import ResolvedCheckpoint
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.runtime.precision import float32_products, probe_image
from model.structures import Detections, DetectOptions, NotFiniteError
from tests.gpu.conftest import CAT, distance
from tests.gpu.networks import CLASSES, network, small
from tests.gpu.simulated_gpu import SimulatedGPU, simulated_gpu


@pytest.fixture
def gpu() -> Iterator[SimulatedGPU]:
    with simulated_gpu() as gpu:
        yield gpu


INF, NAN = float("inf"), float("nan")


@cache
def _expected(device: str) -> list[Detections]:
    """Detect in three images of the cat with an intact network."""
    return small("LITE", device).detect([CAT] * 3, DetectOptions(score_threshold=0.3))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("map", INF),
        ("map", -INF),
        ("map", NAN),
        ("logit", NAN),
        ("logit", -INF),
        ("offset", INF),
        ("class logit", -INF),
        ("class logit", NAN),
        ("class offset", INF),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_value_that_is_not_finite_fails_its_own_image(
    part: str, value: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_gpu():
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
        expected = _expected(device)
        with pytest.raises(NotFiniteError, match=r"fp32 are not finite for 1 of 3 image\(s\)") as caught:
            detector.detect([CAT] * 3, options)
        first, spoilt, last = caught.value.results
        assert spoilt is None
        assert first is not None
        assert last is not None
        assert distance(first, expected[0]) <= (1e-3, 1e-5)
        assert distance(last, expected[2]) <= (1e-3, 1e-5)


def test_fp16_that_overflows_fails_the_image_and_auto_does_not_choose_it(gpu: SimulatedGPU) -> None:
    checkpoint = ResolvedCheckpoint(name="random", path=Path("random"), preset="LITE", classes=CLASSES)

    def overflowing_network() -> FasterRCNN:
        model = deepcopy(network("LITE"))
        with torch.no_grad():
            model.rpn.head.conv[0][0].weight.mul_(1e7)  # type: ignore[index, operator, union-attr]
            model.rpn.head.cls_logits.weight.mul_(1e-7)
            model.rpn.head.bbox_pred.weight.mul_(1e-7)
        return model

    with pytest.raises(NotFiniteError, match=r"fp16 are not finite .* FRCNN_PRECISION=bf16 or fp32"):
        Detector(overflowing_network(), checkpoint, device="cuda", precision="fp16").detect([CAT])
    detector = Detector(overflowing_network(), checkpoint, device="cuda", precision="auto")
    assert detector.precision == "bf16"
    assert any("fp16 moves its output by inf" in sentence for sentence in detector.info.optimizations)
    detector.detect([CAT])


@pytest.mark.parametrize(
    ("capability", "offered"), [((7, 5), {"fp32", "fp16"}), ((8, 0), {"fp32", "tf32", "bf16", "fp16"})]
)
def test_the_capability_says_which_precisions_there_are(capability: tuple[int, int], offered: set[str]) -> None:
    with simulated_gpu(capability):
        assert small("LITE", "cuda", "auto").precision == "fp16"
        for precision in ("fp32", "tf32", "bf16", "fp16", "int8"):
            if precision in offered:
                assert small("LITE", "cuda", precision).precision == precision
                continue
            with pytest.raises(ValueError, match=f"precision {precision} "):
                small("LITE", "cuda", precision)


def test_fp32_multiplies_float32_exactly_and_tf32_does_not(gpu: SimulatedGPU) -> None:
    def modes() -> tuple[str, str]:
        return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    device, before = torch.device("cuda"), modes()
    with float32_products("tf32", device):
        assert modes() == ("tf32", "tf32")
        with float32_products("fp32", device):  # another detector: exact arithmetic is right for both
            assert modes() == ("ieee", "ieee")
        assert modes() == ("tf32", "tf32")
    assert modes() == before
    with float32_products("fp32", torch.device("cpu")):
        assert modes() == before


def test_the_probe_image_is_always_the_same() -> None:
    image = probe_image((64, 96))
    assert image.shape == (64, 96, 3)
    assert image.dtype == torch.uint8
    assert torch.equal(image, probe_image((64, 96)))
    assert image.float().std() > 30
