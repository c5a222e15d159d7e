"""Batch norms folded into convolutions: the same outputs, with nothing left to compute."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from model.config import DetectorConfig
from model.faster_rcnn import FasterRCNN
from model.presets import PRESETS
from model.runtime.fold_batchnorm import fold_batchnorm

NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d)


def _randomise_norms(model: nn.Module) -> None:
    """Give norms random statistics, as those of a checkpoint differ too."""
    for norm in model.modules():
        if isinstance(norm, NORMS):
            channels = len(norm.running_mean)
            norm.weight.data = torch.rand(channels) * 0.2 + 0.4
            norm.bias.data = torch.randn(channels) * 0.1
            norm.running_mean.data = torch.randn(channels) * 0.1
            norm.running_var.data = torch.rand(channels) + 0.5


@pytest.mark.parametrize(
    "config", [preset for preset in PRESETS if preset.backbone != "vgg16"], ids=lambda preset: preset.name
)
@torch.no_grad()
def test_a_folded_network_gives_the_same(config: DetectorConfig) -> None:
    model = FasterRCNN(config.with_classes(3)).eval()
    _randomise_norms(model)
    count = sum(isinstance(module, NORMS) for module in model.modules())
    pixels, pooled = torch.randn(1, 3, 64, 96), torch.randn(2, config.fpn_channels, 7, 7)
    before, heads = model.run_convolutions(pixels), model.roi_heads.classify(pooled)
    assert fold_batchnorm(model) == count
    assert not any(isinstance(module, NORMS) for module in model.modules())
    after, folded_heads = model.run_convolutions(pixels), model.roi_heads.classify(pooled)
    for old, new in zip([*before.maps, before.logits, *heads], [*after.maps, after.logits, *folded_heads], strict=True):
        torch.testing.assert_close(new, old, rtol=1e-3, atol=1e-4 * float(old.abs().max()))


def _pair(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), norm).eval()


def test_a_bias_is_folded_too() -> None:
    layers = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)).eval()
    _randomise_norms(layers)
    pixels = torch.randn(1, 2, 3, 3)
    expected = layers(pixels)
    fold_batchnorm(layers)
    torch.testing.assert_close(layers(pixels), expected)


def test_a_tiny_variance_without_epsilon_is_folded_exactly() -> None:
    # torchvision's ResNet-50 v1 has norms without an epsilon, and channels whose weights are as tiny as the variance.
    layers = _pair(FrozenBatchNorm2d(4, eps=0.0))
    layers[1].running_var.fill_(1e-38)
    layers[0].weight.data.mul_(1e-19)
    before = layers[0].weight.data.clone()
    fold_batchnorm(layers)
    torch.testing.assert_close(layers[0].weight.data, before * 1e19)


def test_a_variance_of_zero_is_refused() -> None:
    layers = _pair(FrozenBatchNorm2d(4, eps=0.0))
    layers[1].running_var.zero_()
    with pytest.raises(ValueError, match=r"1 cannot be folded"):
        fold_batchnorm(layers)


def test_a_norm_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="training mode"):
        fold_batchnorm(_pair(nn.BatchNorm2d(4)).train())


def test_a_norm_without_its_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="does not follow a convolution"):
        fold_batchnorm(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)).eval())
