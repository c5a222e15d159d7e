"""The layers of a quantised detector on a CPU: bytes in, products summed in int32, bytes or float32 out.

A byte b stands for (b - zero) * scale, one grid for the whole map; a weight for w * scale, one scale for each output
channel. Activations, and the sum with another map, are in the same pass as the convolution (oneDNN's operators, the
ones that torch's own compiler calls).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.runtime.cpu.onednn_conv import FUSED, Layouts, widens

Range = tuple[float, float]

_WHOLE = 3.0 * 2**22  # its lowest byte is nought


class Grid(NamedTuple):
    """256 steps of ``scale``, nought at the byte ``zero``."""

    scale: float
    zero: int

    @classmethod
    def of(cls, seen: Range) -> Grid:
        """The finest that reaches from the lowest to the highest value seen. Nought is on it: maps are padded so."""
        low, high = min(seen[0], 0.0), max(seen[1], 0.0)
        scale = max(high - low, 1e-6) / 255
        return cls(scale, round(-low / scale))


class Quantize(nn.Module):
    """Float32 values of any shape as bytes of a grid, in the same order in memory.

    A float32 between 2^23 and 2^24 is a whole number, and its lowest byte that number's: so the sum of a value's steps
    with such a one rounds it, and one conversion of integers takes the bytes out. torch has an operator for it, a
    little faster, that is about to be removed, and converts floats to bytes one by one.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.step = 1 / grid.scale
        self.origin = torch.tensor(_WHOLE + grid.zero)

    def forward(self, values: Tensor) -> Tensor:
        """uint8; what lies off the grid becomes its first or last byte."""
        steps = torch.add(self.origin, values, alpha=self.step).clamp_(_WHOLE, _WHOLE + 255)
        return steps.view(torch.int32).to(torch.uint8)


class Quantized(nn.Module):
    """What the two layers share: weights as bytes, the grids, and what follows the products."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, weight: Tensor, given: Grid) -> None:
        super().__init__()
        self.given = given
        self.made: Grid | None = None  # of the output; None for float32
        self.activation: tuple[str, list[float]] = ("none", [])
        most = largest_weight()
        rows = weight.detach().float()
        self.scales = rows.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / most
        self.zeros = torch.zeros(len(rows), dtype=torch.int32)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.bytes = (rows / self.scales.view(-1, *[1] * (rows.dim() - 1))).round().clamp(-most, most).to(torch.int8)

    def then(self, activation: nn.Module) -> bool:
        """Let ``activation`` be part of it from now on; False for one that cannot be."""
        fused = FUSED.get(type(activation))
        if fused is None or self.activation[0] != "none":
            return False
        self.activation = fused
        return True

    @property
    def _output(self) -> tuple[float, int, torch.dtype]:
        return (1.0, 0, torch.float32) if self.made is None else (*self.made, torch.uint8)


class QuantizedConv2d(Quantized):
    """A convolution that pads with zeros."""

    def __init__(self, conv: nn.Conv2d, given: Grid) -> None:
        """given: of the input."""
        super().__init__(conv, conv.weight, given)
        self.how = ([*conv.padding], [*conv.stride], [*conv.dilation], conv.groups)
        self.summed = False  # whether another map is added
        self._layouts = Layouts()

    def then(self, activation: nn.Module) -> bool:
        """As of all; after a sum the operator has nothing but ReLU."""
        return (isinstance(activation, nn.ReLU) or not self.summed) and super().then(activation)

    def after(self, conv: nn.Conv2d, pad: nn.ZeroPad2d) -> bool:
        """Let ``pad`` be part of it from now on, as ``PackedConv2d`` does; False for one that cannot be."""
        padding = widens(conv, pad)
        if padding is None:
            return False
        self.bytes, self.how = F.pad(self.bytes, (1, 0, 1, 0)), (padding, *self.how[1:])
        return True

    def forward(self, given: Tensor, added: Tensor | None = None) -> Tensor:
        """Bytes [B, inputs, H, W], channels last, to [B, outputs, H', W'].

        added: float32 of the output's shape, summed before the activation, and written over.
        """
        packed = self._layouts.by_shape.get(given.shape)
        if packed is None:
            packed = self._pack(given.shape)
        padding, stride, dilation, groups = self.how
        how = (self.bias, stride, padding, dilation, groups, *self._output)
        operands = (given, *self.given, packed, self.scales, self.zeros)
        operator = torch.ops.onednn.qconv2d_pointwise
        made: Tensor
        if added is None:
            made = operator(*operands, *how, *self.activation, "")
        else:
            made = operator.binary(*operands, added, *how, 1.0, 0, "sum", 1.0, *self.activation, "")
        return made

    def _pack(self, shape: torch.Size) -> Tensor:
        """The weights as oneDNN wants them for maps of this shape."""
        padding, stride, dilation, groups = self.how
        packed: Tensor = torch.ops.onednn.qconv_prepack(
            self.bytes, self.scales, *self.given, stride, padding, dilation, groups, list(shape)
        )
        return self._layouts.put(shape, packed)


class QuantizedLinear(Quantized):
    """A fully connected layer."""

    def __init__(self, linear: nn.Linear, weight: Tensor, given: Grid) -> None:
        """weight: [outputs, inputs], in the order of the inputs. given: of the input."""
        super().__init__(linear, weight, given)
        self._packed = torch.ops.onednn.qlinear_prepack(self.bytes, None)
        del self.bytes

    def forward(self, given: Tensor) -> Tensor:
        """Bytes [R, inputs] to [R, outputs]."""
        operands = (given, *self.given, self._packed, self.scales, self.zeros, self.bias)
        made: Tensor = torch.ops.onednn.qlinear_pointwise(*operands, *self._output, *self.activation, "")
        return made


def can_quantize(device: torch.device) -> bool:
    """Whether a detector can be quantised here."""
    operators = ("qconv2d_pointwise", "qconv_prepack", "qlinear_pointwise", "qlinear_prepack")
    here = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return here and all(hasattr(torch.ops.onednn, name) for name in operators)


@cache
def largest_weight() -> int:
    """The largest byte of a weight, 127 or 63.

    A processor without VNNI sums two products in 16 bits, which overflow from 127 on, and keeps the largest number
    there is in silence. What it does is seen on a sum that is known: oneDNN can be told to do without, too.
    """
    given, weight = torch.full((8, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zeros = torch.ones(16), torch.zeros(16, dtype=torch.int32)
    sums = torch.ops.onednn.qlinear_pointwise(
        given, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return 127 if bool((sums == 64 * 255 * 127).all()) else 63
