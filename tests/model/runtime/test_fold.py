"""Norms folded into convolutions: the same answers, with nothing left to do at run time."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from model.config import PRESETS, DetectorConfig
from model.faster_rcnn import FasterRCNN
from model.runtime.fold_batchnorm import fold_norms

NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d)


def _lively(model: nn.Module) -> None:
    """Norms with statistics of their own, as a checkpoint's have."""
    for norm in model.modules():
        if isinstance(norm, NORMS):
            channels = len(norm.running_mean)
            norm.weight.data = torch.rand(channels) * 0.2 + 0.4
            norm.bias.data = torch.randn(channels) * 0.1
            norm.running_mean.data = torch.randn(channels) * 0.1
            norm.running_var.data = torch.rand(channels) + 0.5


@pytest.mark.parametrize("config", [one for one in PRESETS if one.backbone != "vgg16"], ids=lambda one: one.name)
@torch.no_grad()
def test_a_folded_detector_sees_what_it_saw(config: DetectorConfig) -> None:
    model = FasterRCNN(config.with_classes(3)).eval()
    _lively(model)
    count = sum(isinstance(module, NORMS) for module in model.modules())
    pixels, pooled = torch.randn(1, 3, 64, 96), torch.randn(2, config.fpn_channels, 7, 7)
    before, heads = model.run_convolutions(pixels), model.roi_heads.classify(pooled)
    assert fold_norms(model) == count
    assert not any(isinstance(module, NORMS) for module in model.modules())
    after, folded_heads = model.run_convolutions(pixels), model.roi_heads.classify(pooled)
    for old, new in zip([*before.maps, before.logits, *heads], [*after.maps, after.logits, *folded_heads], strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-4 * float(old.abs().max()))


def _pair(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), norm).eval()


def test_a_bias_goes_through_the_norm_too() -> None:
    layers = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)).eval()
    _lively(layers)
    pixels = torch.randn(1, 2, 3, 3)
    expected = layers(pixels)
    fold_norms(layers)
    torch.testing.assert_close(layers(pixels), expected)


def test_a_tiny_variance_without_epsilon_is_worked_out_exactly() -> None:
    # Trap 7: such a channel is dead in ResNet-50 v1, its weights as tiny as its variance.
    layers = _pair(FrozenBatchNorm2d(4, eps=0.0))
    layers[1].running_var.fill_(1e-38)
    layers[0].weight.data.mul_(1e-19)
    before = layers[0].weight.data.clone()
    fold_norms(layers)
    torch.testing.assert_close(layers[0].weight.data, before * 1e19)


def test_a_variance_of_nought_is_refused() -> None:
    layers = _pair(FrozenBatchNorm2d(4, eps=0.0))
    layers[1].running_var.zero_()
    with pytest.raises(ValueError, match=r"1 cannot be folded"):
        fold_norms(layers)


def test_a_norm_that_still_learns_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        fold_norms(_pair(nn.BatchNorm2d(4)).train())


def test_a_norm_without_its_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="does not follow a convolution"):
        fold_norms(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)).eval())
