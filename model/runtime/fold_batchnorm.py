"""A pass: fold batch norms into the convolutions before them. At inference a norm scales and shifts each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d)


def fold_batchnorm(model: nn.Module) -> int:
    """Fold every batch norm of ``model``, frozen or in inference mode, into its convolution; return their number.

    In place, for inference: the convolutions get other weights and a bias, and each norm becomes an identity, so that
    the state dict has other keys from now on. Computed in float64 and rounded once to the convolution's type: fold
    before casting to a 16-bit type. Raises ``ValueError`` for a norm that does not follow a convolution of its
    channels, for one in training mode, and where a result is not finite (the norms of torchvision's ResNet-50 v1 have
    no epsilon).
    """
    folded = 0
    for path, parent in model.named_modules():
        before: nn.Module | None = None
        for name, child in parent.named_children():
            if isinstance(child, _NORMS):
                if not isinstance(before, nn.Conv2d) or before.out_channels != len(_buffer(child, "running_mean")):
                    raise ValueError(f"The norm {path}.{name} does not follow a convolution of its channels.")
                if child.training and isinstance(child, nn.BatchNorm2d):
                    raise ValueError(f"The norm {path}.{name} is in training mode: call eval() first.")
                _fold(before, child, f"{path}.{name}")
                parent.register_module(name, nn.Identity())
                folded += 1
            before = child
    return folded


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module, path: str) -> None:
    """Multiply and shift the weights of ``conv`` by ``norm``; path: the norm's name, for errors."""
    scale = _buffer(norm, "weight") / torch.sqrt(_buffer(norm, "running_var") + float(norm.eps))  # type: ignore[arg-type]
    shift = _buffer(norm, "bias") - _buffer(norm, "running_mean") * scale
    weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
    bias = shift if conv.bias is None else shift + conv.bias.double() * scale
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    if not (conv.weight.isfinite().all() and conv.bias.isfinite().all()):
        raise ValueError(f"The norm {path} cannot be folded in {dtype}: its variance is zero, or far too small.")


def _buffer(norm: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer of ``norm``, float64 [channels]."""
    value = getattr(norm, name)
    assert isinstance(value, Tensor)
    return value.detach().double()
