"""3x3 convolutions with a quarter of the multiplications (Winograd; Lavin & Gray, arXiv 1509.09308: F(4x4, 3x3)).

Of each tile of 6x6 inputs come 4x4 outputs: transform the tile, multiply each of its 36 numbers by the filter's own,
sum over the channels, transform back. The sums over channels are 36 products of matrices, and so are the transforms of
many tiles at once: all but the gathering of tiles runs at the speed of a matrix product. What it saves grows with the
channels, what it costs does not: it is for wide layers, in float32, on processors whose convolutions run at the speed
of their products.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.runtime.cpu.onednn_conv import PackedConv2d, can_pack

# B^T, G and A^T of the paper's section 4.3, for the points 0, 1, -1, 2, -2 and infinity.
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
_TILE, _STEP = 6, 4
_STRIP = 3_000_000  # numbers in the tiles that are worked on at once, so that they stay in the cache
_WIDE = 256  # channels from which on it may pay
# Of the race: cells along each side of the map, rounds, and how much of the convolution's time it may take at most.
_SIDE, _ROUNDS, _WORTH = 28, 5, 0.9


class WinogradConv2d(nn.Conv2d):
    """Answers as the convolution that it is made of, and shares its weights; float32, for inference."""

    filters: Tensor  # float32 [36, inputs, outputs]
    input_transform: Tensor  # float32 [36, 36]
    output_transform: Tensor  # float32 [16, 36]

    def __init__(self, conv: nn.Conv2d) -> None:
        """Raises ``ValueError`` where ``conv`` is not 3x3 with stride 1, padding 1 and one group."""
        if not _fits(conv):
            raise ValueError(f"Only for 3x3 convolutions with stride 1, padding 1 and one group, not {conv}.")
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, bias=False, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        for name, rows in (("input_transform", _INPUT), ("output_transform", _OUTPUT)):
            once = torch.tensor(rows, dtype=torch.float64)
            self.register_buffer(name, torch.kron(once, once).float(), persistent=False)
        once = torch.tensor(_FILTER, dtype=torch.float64)
        filters = torch.einsum("ia,jb,ocab->ijco", once, once, conv.weight.detach().double())
        self.register_buffer("filters", filters.flatten(0, 1).float().contiguous(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, inputs, H, W] to [B, outputs, H, W], both channels last in memory."""
        batch, channels, height, width = input.shape
        rows, columns = -(-height // _STEP), -(-width // _STEP)
        # A border of one, and what the last tiles stick out.
        beyond = (0, 0, 1, 1 + columns * _STEP - width, 1, 1 + rows * _STEP - height)
        padded = functional.pad(input.permute(0, 2, 3, 1), beyond)
        whole = input.new_empty(batch, rows, _STEP, columns, _STEP, self.out_channels)
        strip = max(1, _STRIP // (_TILE * _TILE * batch * columns * max(channels, self.out_channels)))
        for top in range(0, rows, strip):
            some = padded[:, top * _STEP : (top + strip) * _STEP + _TILE - _STEP]
            tiles = some.unfold(1, _TILE, _STEP).unfold(2, _TILE, _STEP)  # [B, rows, columns, inputs, 6, 6]
            tiles = tiles.permute(4, 5, 0, 1, 2, 3).reshape(_TILE * _TILE, -1)
            spectra = (self.input_transform @ tiles).view(_TILE * _TILE, -1, channels)
            sums = torch.bmm(spectra, self.filters).view(_TILE * _TILE, -1)
            parts = (self.output_transform @ sums).view(_STEP, _STEP, batch, -1, columns, self.out_channels)
            whole[:, top : top + strip] = parts.permute(2, 3, 0, 4, 1, 5)
        answer = whole.view(batch, rows * _STEP, columns * _STEP, -1)[:, :height, :width]
        if self.bias is not None:
            answer = answer + self.bias
        return answer.permute(0, 3, 1, 2)


@torch.inference_mode()
def use_winograd(model: nn.Module) -> int:
    """Replace the wide 3x3 convolutions of ``model`` that are quicker so, on this processor; how many they are.

    In place, for float32 on a CPU. Their transformed filters are four times as large as the filters, which stay for
    the state dict. Each width is raced once, on a small map; where it is a close thing it may go either way, which
    changes answers by some millionths.
    """
    verdicts: dict[tuple[int, int], bool] = {}
    replaced = 0
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            if not (isinstance(conv, nn.Conv2d) and _fits(conv)) or min(conv.in_channels, conv.out_channels) < _WIDE:
                continue
            width = conv.in_channels, conv.out_channels
            if not verdicts.get(width, True):
                continue
            other = WinogradConv2d(conv).eval()
            if width not in verdicts:
                packable = can_pack(conv.weight.device, conv.weight.dtype)
                verdicts[width] = _seconds(other) < _WORTH * _seconds(PackedConv2d(conv) if packable else conv)
            if verdicts[width]:
                parent.register_module(name, other)
                replaced += 1
    return replaced


def _fits(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode) == (
        (3, 3),
        (1, 1),
        (1, 1),
        (1, 1),
        1,
        "zeros",
    )


def _seconds(conv: nn.Conv2d) -> float:
    """Of one call, the best of several: others' work only adds."""
    maps = torch.rand(1, conv.in_channels, _SIDE, _SIDE).contiguous(memory_format=torch.channels_last)
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        conv(maps)
        best = min(best, time.perf_counter() - start)
    return best
