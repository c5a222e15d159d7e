"""A pass: convolutions through oneDNN's own operator, with weights laid out once and the activation in the same call.

``nn.Conv2d`` keeps its weights in torch's order. oneDNN reorders them on every call, for the size of the map; and an
activation then reads and writes the whole map once more. For a small detector each is a tenth of its time. The operator
is the one that torch's compiler calls.

TensorFlow's "same" padding at stride 2 puts a row less before the map than after it, which a convolution of torch
cannot: so the map is copied into a larger one, which takes longer than a depthwise convolution of it. A kernel with a
row and a column of zeros before its own computes the same numbers from a padding that is equal on both sides. Only a
depthwise convolution gains by it: in others the longer sums cost more than the copy.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# By the activation's class: its name and numbers for oneDNN's operators.
FUSED: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}
_SHAPES = 1024  # input shapes a layer remembers a layout for; with exact canvases their number has no bound


class Layouts:
    """A layer's weights as oneDNN lays them out: a few layouts for many shapes of the input."""

    def __init__(self) -> None:
        self.by_shape: dict[torch.Size, Tensor] = {}
        self.by_layout: dict[tuple[int, ...], Tensor] = {}

    def add(self, shape: torch.Size, packed: Tensor) -> Tensor:
        """Store ``packed`` for inputs of ``shape``, unless the same layout exists already; return the stored tensor."""
        layout = tuple(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())
        packed = self.by_layout.setdefault(layout, packed)
        if len(self.by_shape) >= _SHAPES:
            self.by_shape.clear()
        self.by_shape[shape] = packed
        return packed


class PackedConv2d(nn.Conv2d):
    """A convolution by oneDNN's operator. It computes what ``conv`` does and shares its weights; for inference."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over ``conv``, whose weights must not change afterwards.

        Raises ``ValueError`` where ``conv`` does not pad with a fixed number of zeros.
        """
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"Only for convolutions that pad with a fixed number of zeros, not {conv}.")
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size)
        super().__init__(*shape, groups=conv.groups, bias=False, device="meta")  # type: ignore[arg-type]
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._activation: tuple[str, list[float]] = ("none", [])
        self._padding_fused = False
        self._layouts = Layouts()
        self.eval()

    def fuse_padding(self, pad: nn.Module) -> bool:
        """Fuse ``pad``, which precedes this layer; return whether that is possible. Call it before the first input."""
        padding = symmetric_padding(self, pad) if isinstance(pad, nn.ZeroPad2d) else None
        if padding is None:
            return False
        self._padding_fused, self._geometry = True, (padding, *self._geometry[1:])
        return True

    def fuse_activation(self, activation: nn.Module) -> bool:
        """Fuse ``activation``, which follows this layer; return False where that is impossible."""
        fused = FUSED.get(type(activation))
        if fused is None or self._activation[0] != "none":
            return False
        self._activation = fused
        return True

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H', W'], in the type of the weights, channels last in memory."""
        packed = self._layouts.by_shape.get(input.shape)
        if packed is None:
            packed = self._pack(input.shape)
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            input, packed, self.bias, *self._geometry, *self._activation, ""
        )
        return output

    def _pack(self, shape: torch.Size) -> Tensor:
        """Lay the weights out as oneDNN wants them for inputs of ``shape``."""
        weight = self.weight.detach()
        if self._padding_fused:
            weight = F.pad(weight, (1, 0, 1, 0))
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, list(shape))
        return self._layouts.add(shape, packed)


def symmetric_padding(conv: nn.Conv2d, pad: nn.ZeroPad2d) -> list[int] | None:
    """Return the padding with which ``conv`` needs no ``pad``, if its kernel gets a row and a column of zeros before.

    None where ``conv`` is not depthwise, pads itself, or ``pad`` is not TensorFlow's at stride 2.
    """
    left, right, top, bottom = pad.padding
    depthwise = conv.groups == conv.in_channels > 1
    unpadded = conv.padding == (0, 0) and conv.dilation == (1, 1)
    uneven = left == top and right == bottom == left + 1
    return [bottom, right] if depthwise and unpadded and uneven else None


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether ``pack_convolutions`` works for models of ``dtype`` on ``device``."""
    operators = ("_convolution_pointwise", "_reorder_convolution_weight", "_get_mkldnn_serialized_md")
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in operators):  # torch does not promise to keep them
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def pack_convolutions(model: nn.Module, leave: Container[nn.Module] = ()) -> int:
    """Replace the convolutions of ``model``, with padding and activation in an ``nn.Sequential``; return their number.

    In place, for inference; keys and weights of the state dict stay as they are. What stays: modules in ``leave``,
    subclasses of ``nn.Conv2d``, and convolutions that do not pad with a fixed number of zeros.
    """
    packed = 0
    for parent in list(model.modules()):
        before: PackedConv2d | None = None
        children = list(parent.named_children())
        for index, (name, child) in enumerate(children):
            if child in leave:
                before = None
            elif type(child) is nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
                before = PackedConv2d(child)
                parent.register_module(name, before)
                packed += 1
                if isinstance(parent, nn.Sequential) and index and before.fuse_padding(children[index - 1][1]):
                    parent.register_module(children[index - 1][0], nn.Identity())
            elif isinstance(parent, nn.Sequential) and before is not None:
                if isinstance(child, nn.Identity):
                    continue  # a norm that has been folded
                if before.fuse_activation(child):
                    parent.register_module(name, nn.Identity())
                before = None
    return packed
