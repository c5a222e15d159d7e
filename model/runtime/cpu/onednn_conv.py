"""Convolutions on a CPU through oneDNN's own operator: weights laid out once, and the activation in the same pass.

``nn.Conv2d`` keeps its weights in torch's order, and oneDNN lays them out anew on every call, in the order that suits
the size of the map; then an activation goes over the whole map once more. For a small detector both are a tenth of its
time. The operator is the one that torch's own compiler calls.

TensorFlow's "same" padding at stride 2 puts a row less before than after, which a convolution of torch cannot: so the
map is copied into a larger one, which takes a wide map longer than a depthwise convolution of it. A kernel with a row
and a column of zeros before its own sees the same numbers under a padding that is the same on both sides. A convolution
that is not depthwise would pay more for the longer sums than it saves.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# By the activation: its name and numbers for the operator.
FUSED: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}
_SHAPES = 1024  # of inputs whose layout is remembered, by layer; canvases that are exact know no end of them


class Layouts:
    """A layer's weights as oneDNN lays them out: for many shapes of its input, a few layouts."""

    def __init__(self) -> None:
        self.by_shape: dict[torch.Size, Tensor] = {}
        self.by_layout: dict[tuple[int, ...], Tensor] = {}

    def put(self, shape: torch.Size, packed: Tensor) -> Tensor:
        """What serves inputs of this shape from now on: ``packed``, or its like that is there already."""
        layout = tuple(torch.ops.mkldnn._get_mkldnn_serialized_md(packed).tolist())
        packed = self.by_layout.setdefault(layout, packed)
        if len(self.by_shape) >= _SHAPES:
            self.by_shape.clear()
        self.by_shape[shape] = packed
        return packed


class PackedConv2d(nn.Conv2d):
    """Answers as the convolution that it is made of, and shares its weights; for inference on a CPU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """The weights must not change afterwards. Raises ``ValueError`` where ``conv`` pads with other than zeros."""
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"Only for convolutions that pad with so many zeros, not {conv}.")
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size)
        super().__init__(*shape, groups=conv.groups, bias=False, device="meta")  # type: ignore[arg-type]
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self._how = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._activation: tuple[str, list[float]] = ("none", [])
        self._widened = False
        self._layouts = Layouts()
        self.eval()

    def after(self, pad: nn.Module) -> bool:
        """Let ``pad`` be part of it from now on, before it has seen a map; False for one that cannot be."""
        padding = widens(self, pad) if isinstance(pad, nn.ZeroPad2d) else None
        if padding is None:
            return False
        self._widened, self._how = True, (padding, *self._how[1:])
        return True

    def then(self, activation: nn.Module) -> bool:
        """Let ``activation`` be part of it from now on; False for one that cannot be."""
        fused = FUSED.get(type(activation))
        if fused is None or self._activation[0] != "none":
            return False
        self._activation = fused
        return True

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, inputs, H, W] to [B, outputs, H', W'], in the type of the weights, channels last in memory."""
        packed = self._layouts.by_shape.get(input.shape)
        if packed is None:
            packed = self._pack(input.shape)
        made: Tensor = torch.ops.mkldnn._convolution_pointwise(
            input, packed, self.bias, *self._how, *self._activation, ""
        )
        return made

    def _pack(self, shape: torch.Size) -> Tensor:
        """The weights as oneDNN wants them for maps of this shape."""
        weight = self.weight.detach()
        if self._widened:
            weight = F.pad(weight, (1, 0, 1, 0))
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._how, list(shape))
        return self._layouts.put(shape, packed)


def widens(conv: nn.Conv2d, pad: nn.ZeroPad2d) -> list[int] | None:
    """The padding with which a depthwise ``conv`` needs no ``pad``, given a row and a column of zeros more before."""
    left, right, top, bottom = pad.padding
    depthwise = conv.groups == conv.in_channels > 1
    alone = conv.padding == (0, 0) and conv.dilation == (1, 1)
    uneven = left == top and right == bottom == left + 1
    return [bottom, right] if depthwise and alone and uneven else None


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``pack_convolutions`` is for such a model here."""
    operators = ("_convolution_pointwise", "_reorder_convolution_weight", "_get_mkldnn_serialized_md")
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in operators):  # not a part of torch that it promises to keep
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def pack_convolutions(model: nn.Module, leave: Container[nn.Module] = ()) -> int:
    """Replace the convolutions of ``model``, with what is around them in an ``nn.Sequential``; how many they are.

    In place, for inference; keys and weights of the state dict stay as they are. Those in ``leave`` stay, convolutions
    of other classes than ``nn.Conv2d`` itself, and those that pad with other than so many zeros.
    """
    packed = 0
    for parent in list(model.modules()):
        before: PackedConv2d | None = None
        children = list(parent.named_children())
        for place, (name, child) in enumerate(children):
            if child in leave:
                before = None
            elif type(child) is nn.Conv2d and child.padding_mode == "zeros" and not isinstance(child.padding, str):
                before = PackedConv2d(child)
                parent.register_module(name, before)
                packed += 1
                if isinstance(parent, nn.Sequential) and place and before.after(children[place - 1][1]):
                    parent.register_module(children[place - 1][0], nn.Identity())
            elif isinstance(parent, nn.Sequential) and before is not None:
                if isinstance(child, nn.Identity):
                    continue  # a norm that has been folded
                if before.then(child):
                    parent.register_module(name, nn.Identity())
                before = None
    return packed
