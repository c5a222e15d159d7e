"""Winograd's convolutions: the same answers, taken where they are quicker, and in no one's way."""

import pytest
import torch
from torch import nn

from model.config import RESNET50_FPN
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.runtime.cpu import winograd
from model.runtime.cpu.winograd import WinogradConv2d, use_winograd


def _conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    options = {"padding": 1} | options
    conv = nn.Conv2d(inputs, outputs, 3, **options)  # type: ignore[arg-type]
    return conv.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _race(monkeypatch: pytest.MonkeyPatch, winograd_wins: bool) -> None:
    monkeypatch.setattr(winograd, "_seconds", lambda conv: float(isinstance(conv, WinogradConv2d) != winograd_wins))


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (4, 4), (5, 7), (24, 30)])
@pytest.mark.parametrize("strip", [1, 3_000_000], ids=["a row of tiles at once", "all at once"])
def test_it_answers_as_the_convolution(size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_STRIP", strip)
    conv = _conv(24, 16)
    maps = torch.randn(3, 24, *size).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(WinogradConv2d(conv)(maps), conv(maps), atol=2e-5, rtol=0)


def test_it_answers_as_a_convolution_without_bias() -> None:
    conv = _conv(8, 8, bias=False)
    maps = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(WinogradConv2d(conv)(maps), conv(maps), atol=2e-5, rtol=0)


@pytest.mark.parametrize("other", [{"stride": 2}, {"padding": 0}, {"groups": 8}, {"dilation": 2, "padding": 2}])
def test_no_other_kind_of_convolution_is_taken(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Only for 3x3 convolutions"):
        WinogradConv2d(_conv(8, 8, **other))


def test_only_wide_convolutions_are_replaced_and_only_where_it_is_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(_conv(256, 256), nn.ReLU(), nn.Sequential(_conv(256, 256), _conv(256, 8)), _conv(8, 8))

    _race(monkeypatch, winograd_wins=True)
    assert use_winograd(changed := model()) == 2
    assert [isinstance(one, WinogradConv2d) for one in changed.modules() if isinstance(one, nn.Conv2d)] == [
        True,
        True,
        False,
        False,
    ]
    _race(monkeypatch, winograd_wins=False)
    assert use_winograd(model()) == 0


@pytest.mark.parametrize(("worth", "replaced"), [(float("inf"), 1), (0.0, 0)])
def test_the_race_is_run_for_real(worth: float, replaced: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_WORTH", worth)
    assert use_winograd(nn.Sequential(_conv(256, 256))) == replaced


def test_the_weights_stay_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    _race(monkeypatch, winograd_wins=True)
    model = nn.Sequential(_conv(256, 256))
    before = dict(model.state_dict())
    use_winograd(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@torch.inference_mode()
def test_a_network_answers_the_same_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    _race(monkeypatch, winograd_wins=True)
    model = FasterRCNN(RESNET50_FPN.with_classes(3)).eval().to(memory_format=torch.channels_last)
    pixels = torch.randn(1, 3, 128, 160).contiguous(memory_format=torch.channels_last)
    plain = model.run_convolutions(pixels)
    assert use_winograd(model) == 12  # five and two of the last stages, the pyramid's four, the RPN's one
    quick = model.run_convolutions(pixels)
    for one, other in zip(
        (*plain.maps, plain.logits, plain.deltas), (*quick.maps, quick.logits, quick.deltas), strict=True
    ):
        scale = float(one.abs().max())
        torch.testing.assert_close(other, one, atol=1e-4 * scale, rtol=0)


def test_a_detector_says_so_and_one_for_comparing_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    _race(monkeypatch, winograd_wins=True)
    detector = Detector.random("RESNET50_FPN", precision="fp32")
    assert "Winograd's way for 12 convolutions" in detector.info.engine_note
    exact = Detector.random("RESNET50_FPN", precision="fp32", canvas="exact")
    assert "Winograd" not in exact.info.engine_note
    assert not any(isinstance(one, WinogradConv2d) for one in exact.model.modules())
