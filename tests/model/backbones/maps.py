"""Compare a body's maps with torchvision's, with random weights and norms that are not the identity."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "frozen, eps 0": partial(FrozenBatchNorm2d, eps=0.0),
    "batch": nn.BatchNorm2d,
}


def randomise_norms(module: nn.Module) -> nn.Module:
    """Draw the statistics of norms at random, so that a wrong epsilon or order shows."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.25)
        elif name.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return module.eval()


def assert_same_maps(maps: list[Tensor], references: list[Tensor]) -> None:
    assert len(maps) == len(references)
    for map_, reference in zip(maps, references, strict=True):
        assert map_.shape == reference.shape
        torch.testing.assert_close(map_, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))
