"""A pass: flatten pooled regions in the order in which they lie in memory, channels last.

A region that is flattened in the order of training, channel by channel, is a copy of everything that was pooled. fc6
sums over all of it, in any order, as long as its weights are in the same order.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from model.faster_rcnn import FasterRCNN
from model.roi_head import BoxHead


class FlattenChannelsLast(nn.Module):
    """Flatten pooled regions [R, C, r, r], channels last in memory, to [R, r * r * C] without a copy."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Return a view where ``pooled`` is channels last in memory."""
        return pooled.permute(0, 2, 3, 1).flatten(1)


class ChannelsLastLinear(nn.Linear):
    """A linear layer of regions that are flattened channels last; its parameters and state dict stay as they were."""

    columns: Tensor  # the weight [outputs, r * r * C]

    def __init__(self, linear: nn.Linear, resolution: int) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        channels_last = linear.weight.detach().unflatten(1, (-1, resolution, resolution)).permute(0, 2, 3, 1)
        self.register_buffer("columns", channels_last.flatten(1).contiguous(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map [R, r * r * C] to [R, outputs]."""
        return F.linear(input, self.columns, self.bias)


def flatten_channels_last(model: FasterRCNN) -> int:
    """Let the box head of ``model`` flatten channels last; return the number of heads: 0 for a convolutional one.

    In place, for inference. Outputs change by the order of fc6's sums.
    """
    head = model.roi_heads.box_head
    if not isinstance(head, BoxHead):
        return 0
    first = head.fc6[0] if isinstance(head.fc6, nn.Sequential) else head.fc6  # fc6 of a lower rank is two layers
    assert isinstance(first, nn.Linear)
    linear = ChannelsLastLinear(first, model.config.roi_head.resolution)
    if isinstance(head.fc6, nn.Sequential):
        head.fc6[0] = linear
    else:
        head.fc6 = linear
    head.flatten = FlattenChannelsLast()
    return 1
