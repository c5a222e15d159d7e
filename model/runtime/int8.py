"""The layers of a quantised detector on a CPU: bytes in, products summed in int32, bytes or float32 out.

A byte b stands for (b - zero) * scale, one grid for the whole map; a weight for w * scale, one scale for each output
channel. Activations, and the sum with another map, are in the same pass as the convolution (oneDNN's operators, the
ones that torch's own compiler calls).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.runtime.packing import FUSED, SHAPES, widens

Range = tuple[float, float]


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
    """Float32 values of any shape as bytes of a grid, in the same order in memory."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, values: Tensor) -> Tensor:
        """uint8; what lies off the grid becomes its first or last byte."""
        made = torch.quantize_per_tensor(values, *self.grid, torch.quint8)
        # The same bytes by their plain name; int_repr would copy them.
        return torch.empty(0, dtype=torch.uint8).set_(made.untyped_storage(), 0, made.shape, made.stride())


class Quantized(nn.Module):
    """What the two layers share: weights as bytes, the grids, and what follows the products."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, weight: Tensor, given: Grid) -> None:
        super().__init__()
        self.given = given
        self.made: Grid | None = None  # of the output; None for float32
        self.activation: tuple[str, list[float]] = ("none", [])
        most = _most()
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
        self._by_shape: dict[torch.Size, Tensor] = {}
        self._by_layout: dict[tuple[int, ...], Tensor] = {}

    def after(self, conv: nn.Conv2d, pad: nn.ZeroPad2d) -> bool:
        """Let ``pad`` be part of it from now on, as ``PackedConv2d`` does; False for one that cannot be."""
        padding = widens(conv, pad)
        if padding is None:
            return False
        self.bytes, self.how = F.pad(self.bytes, (1, 0, 1, 0)), (padding, *self.how[1:])
        return True

    def forward(self, given: Tensor, added: Tensor | None = None) -> Tensor:
        """Bytes [B, inputs, H, W], channels last, to [B, outputs, H', W'].

        added: float32 of the output's shape, summed before the activation; the answer takes its place in memory.
        """
        packed = self._by_shape.get(given.shape)
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
        layout = tuple(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())
        packed = self._by_layout.setdefault(layout, packed)
        if len(self._by_shape) >= SHAPES:
            self._by_shape.clear()
        self._by_shape[shape] = packed
        return packed


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


def _most() -> int:
    """The largest byte of a weight: without VNNI two products are summed in int16, which 63 cannot overflow."""
    return 127 if torch.cpu._is_vnni_supported() else 63
