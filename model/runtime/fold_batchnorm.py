"""Fold norms into the convolutions before them: at inference a norm is a scale and a shift of each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d)


def fold_norms(model: nn.Module) -> int:
    """Fold every batch norm of ``model``, frozen or in inference mode, into the convolution before it; how many.

    In place, and for inference only: the convolutions get other weights and a bias, and each norm becomes an identity,
    so that the state dict has other keys from now on. Worked out in float64 and rounded once to the convolution's type:
    fold before casting to a short type. Raises ``ValueError`` for a norm that does not follow a convolution of its
    channels, for one in training mode, and where a result is not finite (ResNet-50 v1's norms have no epsilon).
    """
    folded = 0
    for place, parent in model.named_modules():
        before: nn.Module | None = None
        for name, child in parent.named_children():
            if isinstance(child, _NORMS):
                if not isinstance(before, nn.Conv2d) or before.out_channels != len(_buffer(child, "running_mean")):
                    raise ValueError(f"The norm {place}.{name} does not follow a convolution of its channels.")
                if child.training and isinstance(child, nn.BatchNorm2d):
                    raise ValueError(f"The norm {place}.{name} is in training mode: call eval() first.")
                _fold(before, child, f"{place}.{name}")
                parent.register_module(name, nn.Identity())
                folded += 1
            before = child
    return folded


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module, place: str) -> None:
    scale = _buffer(norm, "weight") / torch.sqrt(_buffer(norm, "running_var") + float(norm.eps))  # type: ignore[arg-type]
    shift = _buffer(norm, "bias") - _buffer(norm, "running_mean") * scale
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    bias = shift if conv.bias is None else shift + conv.bias.double() * scale
    kind = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(kind), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(kind), requires_grad=False)
    if not (conv.weight.isfinite().all() and conv.bias.isfinite().all()):
        raise ValueError(f"The norm {place} cannot be folded in {kind}: its variance is nought, or far too small.")


def _buffer(norm: nn.Module, name: str) -> Tensor:
    value = getattr(norm, name)
    assert isinstance(value, Tensor)
    return value.detach().double()
