"""Rewrite a network so that its convolutions and fully connected layers multiply int8.

Between two such layers a map stays in bytes. Where anything else reads it (a sum, a resize, the pooling of regions) it
is float32, and is quantized once for all the layers that read it. That depends on where the values go, so it is read
off the network's graph, as torch.fx traces it:

    convolution, activation                     one call
    convolution, + a map, activation            one call, which overwrites that map where nothing else needs it
    float32 -> Quantize -> the layers that read it
    the first convolution, depthwise after it   left in float32: little work, and most of what accuracy would be lost
    squeeze and excite, class logits, offsets   left in float32

The quantization parameters come from the ranges that ``model.training.quantization_ranges`` measures.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from model.backbones.mobilenet import SqueezeExcite
from model.faster_rcnn import FasterRCNN
from model.runtime.cpu.int8.layers import (
    Quantize,
    Quantized,
    QuantizedConv2d,
    QuantizedLinear,
    QuantParams,
    Range,
)
from model.runtime.cpu.onednn_conv import can_pack, pack_convolutions
from model.runtime.flatten_channels_last import ChannelsLastLinear, FlattenChannelsLast

_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, torch.relu, "relu", "relu_")


def quantize(model: FasterRCNN, ranges: Mapping[str, Range]) -> int:
    """Quantize ``model``, which is in float32 with its norms folded; return how many layers multiply int8.

    In place. ranges: the lowest and the highest input of each layer that ``quantizable_layers`` lists, by its name.
    Raises ``ValueError`` where one is missing.
    """
    names = quantizable_layers(model)
    missing = [name for name in names if name not in ranges]
    if missing:
        raise ValueError(
            f"No range is known for {len(missing)} layers, {missing[0]} among them: run `frcnn calibrate` again."
        )
    params = {name: QuantParams.from_range(ranges[name]) for name in names}
    # The other convolutions now: in a traced graph their activations and paddings no longer lie beside them.
    if can_pack(torch.device("cpu"), torch.float32):
        pack_convolutions(model, leave={layer for name, layer in model.named_modules() if name in params})
    rpn_head = _RPNHeadOfLevels(model.rpn.head, len(model.config.anchors.sizes))
    model.register_module("backbone", _GraphQuantizer(model.backbone, "backbone.", params).module)
    model.rpn.register_module("head", _GraphQuantizer(rpn_head, "rpn.", params).module)
    box_head = _GraphQuantizer(model.roi_heads.box_head, "roi_heads.box_head.", params).module
    model.roi_heads.register_module("box_head", box_head)
    return len(names)


def quantizable_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that ``quantize`` quantizes."""
    excluded = {part for module in model.modules() if isinstance(module, SqueezeExcite) for part in module.modules()}
    names, past_first_layers = [], False
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or layer in excluded:
            continue
        in_backbone = name.startswith("backbone.")
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        if in_backbone and not past_first_layers:
            past_first_layers = not (depthwise or layer.weight.shape[1] == 3)
        if (past_first_layers or not in_backbone) and not name.startswith("roi_heads.box_predictor."):
            names.append(name)
    return names


class _RPNHeadOfLevels(nn.Module):
    """The RPN's head for a fixed number of maps, since a graph has no loop."""

    def __init__(self, head: nn.Module, levels: int) -> None:
        super().__init__()
        self.head = head
        self.levels = levels

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = self.head([maps[level] for level in range(self.levels)])
        return outputs


class _Tracer(fx.Tracer):
    """Trace into everything but the layers that are quantized or left as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_layer = isinstance(m, nn.Conv2d | nn.Linear | FlattenChannelsLast)
        return is_layer or super().is_leaf_module(m, module_qualified_name)


class _GraphQuantizer:
    """Rewrite a part of the network into ``module``, a graph with quantized layers.

    params: the quantization parameters of each layer's input, by ``prefix`` and its name in the part. A layer may be
    called more than once, as at each level of a pyramid: then the same is fused at every call.
    """

    def __init__(self, part: nn.Module, prefix: str, params: Mapping[str, QuantParams]) -> None:
        self.module = fx.GraphModule(part, _Tracer().trace(part))
        self._graph = self.module.graph
        self._modules = dict(self.module.named_modules())
        for node in list(self._graph.nodes):
            if isinstance(self._module(node), nn.Identity | nn.Dropout):
                self._replace(node, node.all_input_nodes[0])
        self._calls: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self._graph.nodes:
            if prefix + _module_name(node) in params:
                self._calls[_module_name(node)].append(node)
        self._layers = {name: _quantized_layer(self._modules[name], params[prefix + name]) for name in self._calls}
        for name, calls in self._calls.items():
            if len(calls) == 1:
                self._fuse_padding(name, calls[0])
                self._fuse_sum(name, calls[0])
            self._fuse_activation(name, calls)
        for name, calls in self._calls.items():
            self._output_bytes(name, calls)
        self._quantize_inputs()
        for name, layer in self._layers.items():
            self.module.add_submodule(name, layer)
        self._graph.lint()
        self.module.recompile()

    def _fuse_padding(self, name: str, call: fx.Node) -> None:
        """Fuse a padding with zeros before the layer, where the layer can pad so itself."""
        layer, conv, before = self._layers[name], self._modules[name], call.all_input_nodes[0]
        pad = self._module(before)
        if not (isinstance(layer, QuantizedConv2d) and isinstance(conv, nn.Conv2d)):
            return
        if isinstance(pad, nn.ZeroPad2d) and len(before.users) == 1 and layer.fuse_padding(conv, pad):
            self._replace(before, before.all_input_nodes[0])

    def _fuse_sum(self, name: str, call: fx.Node) -> None:
        """Fuse the sum with another layer's map, where it is computed before and nothing reads it afterwards."""
        layer, total = self._layers[name], _only_user(call)
        if not isinstance(layer, QuantizedConv2d) or total is None or total.target not in _SUMS:
            return
        addends = [node for node in total.all_input_nodes if node is not call]
        if len(addends) != 1 or len(total.args) != 2 or total.kwargs or _module_name(addends[0]) not in self._layers:
            return
        position = {node: number for number, node in enumerate(self._graph.nodes)}
        if all(position[node] < position[call] for node in (addends[0], *addends[0].users) if node is not total):
            call.args, layer.adds_map = (*call.args, addends[0]), True
            self._replace(total, call)

    def _fuse_activation(self, name: str, calls: Sequence[fx.Node]) -> None:
        """Fuse the activation that follows the layer at every call."""
        followers = [_only_user(call) for call in calls]
        classes = {type(self._activation(node)) for node in followers}
        activation = self._activation(followers[0])
        if len(classes) == 1 and activation is not None and self._layers[name].fuse_activation(activation):
            for node, call in zip(followers, calls, strict=True):
                assert node is not None
                self._replace(node, call)

    def _output_bytes(self, name: str, calls: Sequence[fx.Node]) -> None:
        """Let the layer output bytes, where only quantized layers with the same parameters read them."""
        readers = [(call, reader) for call in calls for reader in call.users]
        adds_map = any(len(call.args) > 1 for call in calls)  # a map that is added to stays float32
        if readers and not adds_map and all(self._reads(reader, call) for call, reader in readers):
            params = {self._layers[_module_name(reader)].input for _, reader in readers}
            if len(params) == 1:
                self._layers[name].output = params.pop()

    def _quantize_inputs(self) -> None:
        """Quantize the float32 values that reach quantized layers, once for all that read them."""
        for value in list(self._graph.nodes):
            layer = self._layers.get(_module_name(value))
            readers = [user for user in value.users if _module_name(user) in self._layers and user.args[0] is value]
            if layer is not None and layer.output is not None:
                continue
            distinct = dict.fromkeys(self._layers[_module_name(user)].input for user in readers)
            for number, params in enumerate(distinct):
                name = f"quantize_{value.name}_{number}"
                self.module.add_submodule(name, Quantize(params))
                with self._graph.inserting_after(value):
                    quantized = self._graph.call_module(name, (value,))
                for user in readers:
                    if self._layers[_module_name(user)].input == params:
                        user.args = (quantized, *user.args[1:])

    def _reads(self, reader: fx.Node, value: fx.Node) -> bool:
        """Return whether ``reader`` is a quantized layer with ``value`` as its input, and not as the map it adds."""
        return _module_name(reader) in self._layers and reader.args[0] is value and value not in reader.args[1:]

    def _module(self, node: fx.Node | None) -> nn.Module | None:
        """Return the module that the node calls; None where it calls none."""
        return None if node is None else self._modules.get(_module_name(node))

    def _activation(self, node: fx.Node | None) -> nn.Module | None:
        """Return the module that the node calls, ReLU for a call of its function."""
        return nn.ReLU() if node is not None and node.target in _RELUS else self._module(node)

    def _replace(self, node: fx.Node, other: fx.Node) -> None:
        """Let the readers of ``node`` read ``other``, and remove ``node``."""
        node.replace_all_uses_with(other)
        self._graph.erase_node(node)


def _quantized_layer(layer: nn.Module, input: QuantParams) -> Quantized:
    """Return the quantized layer for a convolution or a fully connected layer; ``input``: of its input."""
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d(layer, input)
    assert isinstance(layer, nn.Linear)
    return QuantizedLinear(layer, layer.columns if isinstance(layer, ChannelsLastLinear) else layer.weight, input)


def _module_name(node: fx.Node) -> str:
    """Return the name of the module that the node calls; empty where it calls none."""
    return str(node.target) if node.op == "call_module" else ""


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return the node that reads ``node``; None where there are none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None
