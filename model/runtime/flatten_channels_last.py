"""Flatten pooled regions in the order in which they lie in memory: channels last.

A flat region in the order of training, channel by channel, is a copy of all that has been pooled. fc6 sums over all of
it in any order, as long as its weights are in the same.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.roi_head import BoxHead


class FlattenChannelsLast(nn.Module):
    """Pooled regions [R, C, r, r], channels last in memory, to [R, r * r * C]."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Without a copy."""
        return pooled.permute(0, 2, 3, 1).flatten(1)


class ChannelsLastLinear(nn.Linear):
    """A linear layer of flat regions that come channels last; its parameters and its state dict stay as they were."""

    columns: Tensor  # the weight [outputs, r * r * C]

    def __init__(self, linear: nn.Linear, resolution: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        by_place = linear.weight.detach().unflatten(1, (-1, resolution, resolution)).permute(0, 2, 3, 1)
        self.register_buffer("columns", by_place.flatten(1).contiguous(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """[R, r * r * C] to [R, outputs]."""
        return F.linear(input, self.columns, self.bias)


def flatten_channels_last(head: nn.Module, resolution: int) -> bool:
    """Let ``head`` flatten so, and its fc6 take it; True where it is a ``BoxHead``. In place, for inference."""
    if not isinstance(head, BoxHead):
        return False
    first = head.fc6[0] if isinstance(head.fc6, nn.Sequential) else head.fc6  # which may be two layers
    assert isinstance(first, nn.Linear)
    quick = ChannelsLastLinear(first, resolution)
    if isinstance(head.fc6, nn.Sequential):
        head.fc6[0] = quick
    else:
        head.fc6 = quick
    head.flatten = FlattenChannelsLast()
    return True
