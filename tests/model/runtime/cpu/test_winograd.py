"""Winograd's convolutions: the same outputs, and used where they are faster."""

import pytest
import torch
from torch import nn

from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.presets import RESNET50_FPN
from model.runtime.cpu import winograd
from model.runtime.cpu.winograd import WinogradConv2d, use_winograd


def _conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    options = {"padding": 1} | options
    conv = nn.Conv2d(inputs, outputs, 3, **options)  # type: ignore[arg-type]
    return conv.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _decide(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    monkeypatch.setattr(winograd, "_seconds", lambda conv: float(isinstance(conv, WinogradConv2d) != faster))


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (4, 4), (5, 7), (24, 30)])
@pytest.mark.parametrize("strip", [1, 3_000_000], ids=["a row of tiles at once", "all at once"])
def test_winograd_gives_the_same_as_the_convolution(
    size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "_STRIP", strip)
    conv = _conv(24, 16)
    maps = torch.randn(3, 24, *size).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(WinogradConv2d(conv)(maps), conv(maps), atol=2e-5, rtol=0)


def test_winograd_without_bias_gives_the_same() -> None:
    conv = _conv(8, 8, bias=False)
    maps = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(WinogradConv2d(conv)(maps), conv(maps), atol=2e-5, rtol=0)


@pytest.mark.parametrize("other", [{"stride": 2}, {"padding": 0}, {"groups": 8}, {"dilation": 2, "padding": 2}])
def test_other_convolutions_are_refused(other: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Only for 3x3 convolutions"):
        WinogradConv2d(_conv(8, 8, **other))


def test_only_wide_convolutions_are_replaced_and_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(_conv(256, 256), nn.ReLU(), nn.Sequential(_conv(256, 256), _conv(256, 8)), _conv(8, 8))

    _decide(monkeypatch, faster=True)
    changed = model()
    assert use_winograd(changed) == 2
    convs = [layer for layer in changed.modules() if isinstance(layer, nn.Conv2d)]
    assert [isinstance(conv, WinogradConv2d) for conv in convs] == [True, True, False, False]
    _decide(monkeypatch, faster=False)
    assert use_winograd(model()) == 0


@pytest.mark.parametrize(("max_share", "replaced"), [(float("inf"), 1), (0.0, 0)])
def test_the_benchmark_decides_by_measured_times(
    max_share: float, replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "_MAX_SHARE", max_share)
    assert use_winograd(nn.Sequential(_conv(256, 256))) == replaced


def test_the_state_dict_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    _decide(monkeypatch, faster=True)
    model = nn.Sequential(_conv(256, 256))
    before = dict(model.state_dict())
    use_winograd(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@torch.inference_mode()
def test_a_network_with_winograd_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _decide(monkeypatch, faster=True)
    model = FasterRCNN(RESNET50_FPN.with_classes(3)).eval().to(memory_format=torch.channels_last)
    pixels = torch.randn(1, 3, 128, 160).contiguous(memory_format=torch.channels_last)
    plain = model.run_convolutions(pixels)
    assert use_winograd(model) == 12  # five and two of the last stages, the pyramid's four, the RPN's one
    fast = model.run_convolutions(pixels)
    for before, after in zip(
        (*plain.maps, plain.logits, plain.deltas), (*fast.maps, fast.logits, fast.deltas), strict=True
    ):
        scale = float(before.abs().max())
        torch.testing.assert_close(after, before, atol=1e-4 * scale, rtol=0)


def test_a_detector_reports_winograd_and_exact_canvases_leave_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _decide(monkeypatch, faster=True)
    detector = Detector.random("RESNET50_FPN", precision="fp32")
    assert "12 wide 3x3 convolutions use Winograd's algorithm." in detector.info.optimizations
    exact = Detector.random("RESNET50_FPN", precision="fp32", canvas="exact")
    assert "Winograd" not in " ".join(exact.info.optimizations)
    assert not any(isinstance(layer, WinogradConv2d) for layer in exact.model.modules())
