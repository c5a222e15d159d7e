"""Let depthwise convolutions pad by themselves where a padded copy of their input would be made for them.

TensorFlow's "same" padding puts a row less before than after at stride 2, which a convolution of torch cannot: so the
map is copied into a larger one, which takes a wide map longer than the convolution itself. A kernel with a row and a
column of zeros before its own sees the same numbers under a padding that is the same on both sides. A convolution that
is not depthwise would pay more for the longer sums than it saves.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F


def pad_in_convolutions(model: nn.Module) -> int:
    """Widen the kernels of the depthwise convolutions of ``model`` that are padded unevenly; how many those are.

    In place, and for inference only: weights [O, 1, k, k] become [O, 1, k + 1, k + 1]. Found where an ``nn.ZeroPad2d``
    of one row and column more after than before comes before a convolution in an ``nn.Sequential``.
    """
    widened = 0
    for parent in model.modules():
        if not isinstance(parent, nn.Sequential):
            continue
        children = list(parent.named_children())
        for (place, pad), (name, conv) in itertools.pairwise(children):
            if isinstance(pad, nn.ZeroPad2d) and isinstance(conv, nn.Conv2d) and _fits(pad, conv):
                parent.register_module(place, nn.Identity())
                parent.register_module(name, _widened(conv, pad.padding[1]))
                widened += 1
    return widened


def _fits(pad: nn.ZeroPad2d, conv: nn.Conv2d) -> bool:
    left, right, top, bottom = pad.padding
    alone = conv.padding == (0, 0) and conv.dilation == (1, 1) and conv.kernel_size[0] == conv.kernel_size[1]
    return alone and conv.groups == conv.in_channels > 1 and left == top and right == bottom == left + 1


@torch.no_grad()
def _widened(conv: nn.Conv2d, padding: int) -> nn.Conv2d:
    size = conv.kernel_size[0] + 1
    with torch.device("meta"):
        wide = nn.Conv2d(conv.in_channels, conv.out_channels, size, padding=padding, groups=conv.groups)
    wide.stride = conv.stride
    wide.weight = nn.Parameter(F.pad(conv.weight, (1, 0, 1, 0)), requires_grad=False)
    wide.bias = conv.bias
    return wide.train(conv.training)
