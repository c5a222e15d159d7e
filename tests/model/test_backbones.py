"""Our backbones against torchvision's, with torchvision's own random weights: same keys, same maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from model.backbones.mobilenet import mobilenet_v3_large
from model.backbones.resnet import resnet50
from model.backbones.vgg import vgg16

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "frozen, eps 0": partial(FrozenBatchNorm2d, eps=0.0),
    "batch": nn.BatchNorm2d,
}


def lively(module: nn.Module) -> nn.Module:
    """Norms that do something: statistics and scales drawn at random, so that a wrong epsilon or order shows."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.25)
        elif name.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return module.eval()


def assert_same_maps(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.shape == reference.shape
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


@pytest.mark.parametrize("norm", NORMS)
def test_resnet50_gives_torchvisions_maps(norm: str) -> None:
    torch.manual_seed(0)
    stages = {f"layer{k}": str(k) for k in range(1, 5)}
    reference = lively(torchvision.models.resnet50(weights=None, norm_layer=NORMS[norm]))
    body = resnet50(NORMS[norm]).eval()
    # resnet50 without its classifier is what the detectors keep
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    assert set(body.state_dict()) == set(state)
    body.load_state_dict(state)
    pixels = torch.randn(2, 3, 96, 70)
    with torch.inference_mode():
        maps = body(pixels)
        assert_same_maps(maps, list(IntermediateLayerGetter(reference, stages)(pixels).values()))
    assert tuple(map_.shape[1] for map_ in maps) == body.channels
    assert [map_.shape[2] for map_ in maps] == [96 // stride for stride in body.strides]


def test_vgg16_gives_torchvisions_conv5_3() -> None:
    torch.manual_seed(0)
    reference = torchvision.models.vgg16(weights=None).features.eval()
    body = vgg16().eval()
    body.features.load_state_dict(reference.state_dict())
    pixels = torch.randn(1, 3, 70, 97)
    with torch.inference_mode():
        maps = body(pixels)
        assert_same_maps(maps, [reference[:-1](pixels)])  # all but pool5
    assert maps[0].shape == (1, 512, 70 // 16, 97 // 16)
    assert (body.channels, body.strides) == ((512,), (16,))


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_mobilenet_gives_torchvisions_two_maps(norm: str) -> None:
    torch.manual_seed(0)
    reference = lively(torchvision.models.mobilenet_v3_large(weights=None, norm_layer=NORMS[norm])).features
    body = mobilenet_v3_large(NORMS[norm]).eval()
    assert set(body.state_dict()) == set(reference.state_dict())
    body.load_state_dict(reference.state_dict())
    pixels = torch.randn(2, 3, 96, 70)
    with torch.inference_mode():
        maps = body(pixels)
        assert_same_maps(maps, list(IntermediateLayerGetter(reference, {"13": "0", "16": "1"})(pixels).values()))
    assert tuple(map_.shape[1] for map_ in maps) == body.channels


@pytest.mark.parametrize("build", [lambda: resnet50(nn.BatchNorm2d), vgg16, lambda: mobilenet_v3_large(nn.BatchNorm2d)])
def test_gradients_reach_every_weight(build: Callable[[], nn.Module]) -> None:
    body = build().train()
    sum(map_.float().mean() for map_ in body(torch.randn(2, 3, 64, 64))).backward()
    missing = [name for name, parameter in body.named_parameters() if parameter.grad is None]
    assert missing == []
