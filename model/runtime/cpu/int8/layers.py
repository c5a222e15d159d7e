"""The layers of a quantized network on a CPU: uint8 inputs, products summed in int32, uint8 or float32 outputs.

A byte b of a map stands for (b - zero_point) * scale, with one scale for the whole map; a weight w for w * scale, with
one scale for each output channel. Activations, and the sum with another map, are in the same call as the convolution.
The operators are oneDNN's, those that torch's compiler calls.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.runtime.cpu.onednn_conv import FUSED, Layouts, symmetric_padding

Range = tuple[float, float]  # the lowest and the highest value

_WHOLE = 3.0 * 2**22  # a whole float32 whose lowest byte is 0


class QuantParams(NamedTuple):
    """The 256 values that a byte can stand for: steps of ``scale``, 0 at the byte ``zero_point``."""

    scale: float
    zero_point: int

    @classmethod
    def from_range(cls, values: Range) -> QuantParams:
        """Return the finest steps that cover ``values`` and hold 0 exactly, since maps are padded with it."""
        low, high = min(values[0], 0.0), max(values[1], 0.0)
        scale = max(high - low, 1e-6) / 255
        return cls(scale, round(-low / scale))


class Quantize(nn.Module):
    """Convert float32 values of any shape to bytes, in the same order in memory.

    A float32 between 2^23 and 2^24 is a whole number, and its lowest byte is that number's: adding a value, in steps,
    to such a number rounds it, and one conversion of integers takes the bytes out. torch has a faster operator for
    this, which is about to be removed, and otherwise converts floats to bytes one by one.
    """

    def __init__(self, params: QuantParams) -> None:
        super().__init__()
        self.steps_per_unit = 1 / params.scale
        self.origin = torch.tensor(_WHOLE + params.zero_point)

    def forward(self, values: Tensor) -> Tensor:
        """Return uint8; values out of range become 0 or 255."""
        steps = torch.add(self.origin, values, alpha=self.steps_per_unit).clamp_(_WHOLE, _WHOLE + 255)
        return steps.view(torch.int32).to(torch.uint8)


class Quantized(nn.Module):
    """The common part of the quantized layers: int8 weights, quantization parameters, and the activation.

    output: the parameters of the output; None where it is float32.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, weight: Tensor, input: QuantParams) -> None:
        super().__init__()
        self.input = input
        self.output: QuantParams | None = None
        self.activation: tuple[str, list[float]] = ("none", [])
        limit = weight_qmax()
        rows = weight.detach().float()
        self.scales = rows.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / limit
        self.zero_points = torch.zeros(len(rows), dtype=torch.int32)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        steps = rows / self.scales.view(-1, *[1] * (rows.dim() - 1))
        self.quantized_weight = steps.round().clamp(-limit, limit).to(torch.int8)

    def fuse_activation(self, activation: nn.Module) -> bool:
        """Fuse ``activation``, which follows this layer; return False where that is impossible."""
        fused = FUSED.get(type(activation))
        if fused is None or self.activation[0] != "none":
            return False
        self.activation = fused
        return True

    @property
    def _output_arguments(self) -> tuple[float, int, torch.dtype]:
        """Return scale, zero point and type of the output, as oneDNN's operators take them."""
        return (1.0, 0, torch.float32) if self.output is None else (*self.output, torch.uint8)


class QuantizedConv2d(Quantized):
    """A quantized convolution that pads with zeros.

    adds_map: whether it also adds another map, which ``forward`` then takes.
    """

    def __init__(self, conv: nn.Conv2d, input: QuantParams) -> None:
        """Quantize the weights of ``conv``; ``input``: of its input."""
        super().__init__(conv, conv.weight, input)
        self.geometry = ([*conv.padding], [*conv.stride], [*conv.dilation], conv.groups)
        self.adds_map = False
        self._layouts = Layouts()

    def fuse_activation(self, activation: nn.Module) -> bool:
        """Fuse ``activation``; after a sum oneDNN's operator supports ReLU only."""
        return (isinstance(activation, nn.ReLU) or not self.adds_map) and super().fuse_activation(activation)

    def fuse_padding(self, conv: nn.Conv2d, pad: nn.ZeroPad2d) -> bool:
        """Fuse ``pad``, which precedes this layer, as ``PackedConv2d`` does; return False where that is impossible."""
        padding = symmetric_padding(conv, pad)
        if padding is None:
            return False
        self.quantized_weight = F.pad(self.quantized_weight, (1, 0, 1, 0))
        self.geometry = (padding, *self.geometry[1:])
        return True

    def forward(self, input: Tensor, added: Tensor | None = None) -> Tensor:
        """Map bytes [B, inputs, H, W], channels last, to [B, outputs, H', W'].

        added: float32 of the output's shape, which is added before the activation, and overwritten.
        """
        packed = self._layouts.by_shape.get(input.shape)
        if packed is None:
            packed = self._pack(input.shape)
        padding, stride, dilation, groups = self.geometry
        operands = (input, *self.input, packed, self.scales, self.zero_points)
        options = (self.bias, stride, padding, dilation, groups, *self._output_arguments)
        operator = torch.ops.onednn.qconv2d_pointwise
        output: Tensor
        if added is None:
            output = operator(*operands, *options, *self.activation, "")
        else:
            output = operator.binary(*operands, added, *options, 1.0, 0, "sum", 1.0, *self.activation, "")
        return output

    def _pack(self, shape: torch.Size) -> Tensor:
        """Lay the weights out as oneDNN wants them for inputs of ``shape``."""
        padding, stride, dilation, groups = self.geometry
        packed: Tensor = torch.ops.onednn.qconv_prepack(
            self.quantized_weight, self.scales, *self.input, stride, padding, dilation, groups, list(shape)
        )
        return self._layouts.add(shape, packed)


class QuantizedLinear(Quantized):
    """A quantized fully connected layer."""

    def __init__(self, linear: nn.Linear, weight: Tensor, input: QuantParams) -> None:
        """Quantize ``weight`` [outputs, inputs], in the order of the inputs; ``input``: of the input."""
        super().__init__(linear, weight, input)
        self._packed = torch.ops.onednn.qlinear_prepack(self.quantized_weight, None)
        del self.quantized_weight

    def forward(self, input: Tensor) -> Tensor:
        """Map bytes [R, inputs] to [R, outputs]."""
        operands = (input, *self.input, self._packed, self.scales, self.zero_points, self.bias)
        output: Tensor = torch.ops.onednn.qlinear_pointwise(*operands, *self._output_arguments, *self.activation, "")
        return output


def can_quantize(device: torch.device) -> bool:
    """Return whether a network can be quantized for ``device``."""
    operators = ("qconv2d_pointwise", "qconv_prepack", "qlinear_pointwise", "qlinear_prepack")
    has_onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return has_onednn and all(hasattr(torch.ops.onednn, name) for name in operators)


@cache
def weight_qmax() -> int:
    """Return the largest int8 value of a weight: 127, or 63 where the processor would overflow.

    A processor without VNNI sums two products in 16 bits, which saturate, without an error, for weights that are
    larger. Whether it saturates is measured on a known sum, since oneDNN can also be configured not to use VNNI.
    """
    inputs, weight = torch.full((8, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zero_points = torch.ones(16), torch.zeros(16, dtype=torch.int32)
    sums = torch.ops.onednn.qlinear_pointwise(
        inputs, 1.0, 0, packed, scales, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return 127 if bool((sums == 64 * 255 * 127).all()) else 63
