"""Flatten pooled regions in the order in which they lie in memory: channels last.

A flat region in the order of training, channel by channel, is a copy of all that has been pooled. fc6 sums over all of
it in any order, as long as its weights are in the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.roi_head import BoxHead


class FlattenChannelsLast(nn.Module):
    """Pooled regions [R, C, r, r], channels last in memory, to [R, r * r * C]."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Without a copy."""
        return pooled.permute(0, 2, 3, 1).flatten(1)


@torch.no_grad()
def flatten_channels_last(head: nn.Module, resolution: int) -> bool:
    """Let ``head`` flatten so, and put the columns of its fc6 into that order; True where it is a ``BoxHead``.

    In place, and for inference: its state dict is another detector's from now on.
    """
    if not isinstance(head, BoxHead):
        return False
    fc6 = head.fc6[0] if isinstance(head.fc6, nn.Sequential) else head.fc6  # which may be two layers
    assert isinstance(fc6, nn.Linear)
    weight = fc6.weight.unflatten(1, (-1, resolution, resolution)).permute(0, 2, 3, 1).flatten(1)
    fc6.weight = nn.Parameter(weight.contiguous(), requires_grad=fc6.weight.requires_grad)
    head.flatten = FlattenChannelsLast()
    return True
