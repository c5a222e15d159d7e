"""Feature pyramid network (arXiv 1612.03144), in torchvision's state-dict layout."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones.spec import Norm


class FeaturePyramid(nn.Module):
    """Project maps to a common width with 1x1 convolutions, add them from the coarsest down, and apply a 3x3 to each.

    channels: of the body's maps, finest first. width: channels of every output. norm: makes the norm after each
    convolution, whose bias it replaces; None for none. pool: append the coarsest output subsampled by 2, as
    torchvision's LastLevelMaxPool.
    """

    def __init__(self, channels: Sequence[int], width: int, norm: Norm | None = None, *, pool: bool = True) -> None:
        super().__init__()
        self.pool = pool

        def conv(inputs: int, kernel: int) -> nn.Sequential:
            parts: list[nn.Module] = [nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=norm is None)]
            if norm is not None:
                parts.append(norm(width))
            return nn.Sequential(*parts)

        self.inner_blocks = nn.ModuleList(conv(inputs, 1) for inputs in channels)
        self.layer_blocks = nn.ModuleList(conv(width, 3) for _ in channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map [B, Ci, Hi, Wi], finest first, to as many maps [B, width, Hi, Wi], and one more with ``pool``."""
        lateral = [block(level) for block, level in zip(self.inner_blocks, maps, strict=True)]
        merged = [lateral[-1]]
        for level in reversed(lateral[:-1]):
            merged.append(level + F.interpolate(merged[-1], size=level.shape[-2:], mode="nearest"))
        merged.reverse()
        outputs = [block(level) for block, level in zip(self.layer_blocks, merged, strict=True)]
        if self.pool:
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs
