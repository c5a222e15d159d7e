"""A pass: 3x3 convolutions with a quarter of the multiplications (Winograd's F(4x4, 3x3), arXiv 1509.09308).

Each tile of 6x6 inputs gives 4x4 outputs: transform the tile, multiply each of its 36 numbers by that of the filter,
sum over the channels, transform back. The sums over channels are 36 matrix products, and the transforms of many tiles
are matrix products too: everything but the gathering of tiles runs at their speed. What is saved grows with the
channels, and the cost does not: the pass is for wide layers, in float32, on processors whose convolutions are limited
by arithmetic.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
_STRIP = 3_000_000  # numbers in the tiles that are computed at once, so that they stay in the cache
_MIN_CHANNELS = 256  # below, Winograd cannot be faster
# The benchmark that decides: cells along each side of the map, calls, and the most of the convolution's time to take.
_SIDE, _CALLS, _MAX_SHARE = 28, 5, 0.9


class WinogradConv2d(nn.Conv2d):
    """A convolution by Winograd's algorithm. It computes what ``conv`` does and shares its weights; for inference."""

    filters: Tensor  # float32 [36, inputs, outputs]
    input_transform: Tensor  # float32 [36, 36]
    output_transform: Tensor  # float32 [16, 36]

    def __init__(self, conv: nn.Conv2d) -> None:
        """Transform the filters of ``conv``, in float32.

        Raises ``ValueError`` where ``conv`` is not 3x3 with stride 1, padding 1 and one group.
        """
        if not _is_supported(conv):
            raise ValueError(f"Only for 3x3 convolutions with stride 1, padding 1 and one group, not {conv}.")
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, bias=False, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        for name, rows in (("input_transform", _INPUT), ("output_transform", _OUTPUT)):
            matrix = torch.tensor(rows, dtype=torch.float64)
            # Along both axes at once: the Kronecker product.
            self.register_buffer(name, torch.kron(matrix, matrix).float(), persistent=False)
        matrix = torch.tensor(_FILTER, dtype=torch.float64)
        filters = torch.einsum("ia,jb,ocab->ijco", matrix, matrix, conv.weight.detach().double())
        self.register_buffer("filters", filters.flatten(0, 1).float().contiguous(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H, W], both channels last in memory."""
        batch, channels, height, width = input.shape
        rows, columns = -(-height // _STEP), -(-width // _STEP)
        # A border of one, and at the ends as much as the last tiles exceed the map.
        border = (0, 0, 1, 1 + columns * _STEP - width, 1, 1 + rows * _STEP - height)
        padded = F.pad(input.permute(0, 2, 3, 1), border)
        output = input.new_empty(batch, rows, _STEP, columns, _STEP, self.out_channels)
        strip = max(1, _STRIP // (_TILE * _TILE * batch * columns * max(channels, self.out_channels)))
        for top in range(0, rows, strip):
            part = padded[:, top * _STEP : (top + strip) * _STEP + _TILE - _STEP]
            tiles = part.unfold(1, _TILE, _STEP).unfold(2, _TILE, _STEP)  # [B, rows, columns, inputs, 6, 6]
            tiles = tiles.permute(4, 5, 0, 1, 2, 3).reshape(_TILE * _TILE, -1)
            spectra = (self.input_transform @ tiles).view(_TILE * _TILE, -1, channels)
            sums = torch.bmm(spectra, self.filters).view(_TILE * _TILE, -1)
            blocks = (self.output_transform @ sums).view(_STEP, _STEP, batch, -1, columns, self.out_channels)
            output[:, top : top + strip] = blocks.permute(2, 3, 0, 4, 1, 5)
        output = output.view(batch, rows * _STEP, columns * _STEP, -1)[:, :height, :width]
        if self.bias is not None:
            output = output + self.bias
        return output.permute(0, 3, 1, 2)


@torch.inference_mode()
def use_winograd(model: nn.Module) -> int:
    """Replace the wide 3x3 convolutions of ``model`` that are faster so on this processor; return their number.

    In place, for float32 on a CPU. The transformed filters are four times as large as the filters, which stay for the
    state dict. Each pair of widths is benchmarked once, on a small map. Where both are about as fast either may be
    taken, so that outputs may differ by some millionths from one start to the next.
    """
    faster_by_width: dict[tuple[int, int], bool] = {}
    replaced = 0
    for parent in list(model.modules()):
        for name, conv in list(parent.named_children()):
            if not (isinstance(conv, nn.Conv2d) and _is_supported(conv)):
                continue
            width = conv.in_channels, conv.out_channels
            if min(width) < _MIN_CHANNELS or not faster_by_width.get(width, True):
                continue
            candidate = WinogradConv2d(conv).eval()
            if width not in faster_by_width:
                packable = can_pack(conv.weight.device, conv.weight.dtype)
                limit = _MAX_SHARE * _seconds(PackedConv2d(conv) if packable else conv)
                faster_by_width[width] = _seconds(candidate) < limit
            if faster_by_width[width]:
                parent.register_module(name, candidate)
                replaced += 1
    return replaced


def _is_supported(conv: nn.Conv2d) -> bool:
    """Return whether ``conv`` is 3x3 with stride 1, padding 1 and one group."""
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


def _seconds(conv: nn.Conv2d) -> float:
    """Measure one call; the fastest of several, since other processes only add time."""
    maps = torch.rand(1, conv.in_channels, _SIDE, _SIDE).contiguous(memory_format=torch.channels_last)
    fastest = float("inf")
    for _ in range(_CALLS):
        start = time.perf_counter()
        conv(maps)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
