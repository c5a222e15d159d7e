"""A detector whose convolutions and fully connected layers multiply bytes, from one whose inputs' ranges were seen.

Between two such layers a map stays in bytes. Where anything else looks at it (a sum, a resize, the pooling of regions)
it is float32, and is put on its grid once, for all the layers that read it. What is decided by that is where the values
go, so it is read off the network's graph, as torch.fx traces it:

    convolution, activation                     one call
    convolution, + a map, activation            one call, which writes over that map where nobody needs it any more
    float32 -> Quantize -> the layers after it
    the first convolution, depthwise after it   as they are: little work, and most of what would be lost
    squeeze and excite, class logits, offsets   as they are

The grids are of the ranges that ``model.training.quantization_ranges`` sees.
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
from model.runtime.cpu.int8.layers import Grid, Quantize, Quantized, QuantizedConv2d, QuantizedLinear, Range
from model.runtime.cpu.onednn_conv import can_pack, pack_convolutions
from model.runtime.flatten_channels_last import ChannelsLastLinear, FlattenChannelsLast

_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RECTIFIERS = (F.relu, torch.relu, "relu", "relu_")


def quantize(model: FasterRCNN, ranges: Mapping[str, Range]) -> int:
    """Quantise ``model``, folded and in float32, in place; returns how many layers multiply bytes now.

    ranges: from where to where each layer's input goes, by the layer's name in ``model``, for all that ``quantizable``
    lists. Raises ``ValueError`` for a layer without one.
    """
    names = quantizable(model)
    missing = [name for name in names if name not in ranges]
    if missing:
        raise ValueError(
            f"No range is known for {len(missing)} layers, {missing[0]} among them: `frcnn calibrate` anew."
        )
    wanted = {name: Grid.of(ranges[name]) for name in names}
    if can_pack(torch.device("cpu"), torch.float32):  # while what is around them is to be seen
        pack_convolutions(model, leave={layer for name, layer in model.named_modules() if name in wanted})
    levels = _Levels(model.rpn.head, len(model.config.anchors.sizes))
    model.register_module("backbone", _Rewriting(model.backbone, "backbone.", wanted).module)
    model.rpn.register_module("head", _Rewriting(levels, "rpn.", wanted).module)
    head = _Rewriting(model.roi_heads.box_head, "roi_heads.box_head.", wanted).module
    model.roi_heads.register_module("box_head", head)
    return len(names)


def quantizable(model: nn.Module) -> list[str]:
    """The names of the layers that ``quantize`` is for."""
    excitement = {part for module in model.modules() if isinstance(module, SqueezeExcite) for part in module.modules()}
    names, entered = [], False
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or layer in excitement:
            continue
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        if not entered and name.startswith("backbone."):
            entered = not (depthwise or layer.weight.shape[1] == 3)
        if (entered or not name.startswith("backbone.")) and not name.startswith("roi_heads.box_predictor."):
            names.append(name)
    return names


class _Levels(nn.Module):
    """The RPN's head for a known number of maps: a graph has no loop."""

    def __init__(self, head: nn.Module, levels: int) -> None:
        super().__init__()
        self.head = head
        self.levels = levels

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] = self.head([maps[level] for level in range(self.levels)])
        return made


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, nn.Conv2d | nn.Linear | FlattenChannelsLast)
        return layer or super().is_leaf_module(m, module_qualified_name)


class _Rewriting:
    """A part of the network as ``module``, with the layers that have a grid quantised.

    wanted: the grid of each layer's input, by ``prefix`` and its name in the part. A layer may be called at several
    places, once for each level of a pyramid; what is fused is then fused at all of them.
    """

    def __init__(self, part: nn.Module, prefix: str, wanted: Mapping[str, Grid]) -> None:
        self.module = fx.GraphModule(part, _Tracer().trace(part))
        self._graph = self.module.graph
        self._modules = dict(self.module.named_modules())
        for node in list(self._graph.nodes):
            if isinstance(self._module(node), nn.Identity | nn.Dropout):
                self._replace(node, node.all_input_nodes[0])
        self._sites: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self._graph.nodes:
            if prefix + _called(node) in wanted:
                self._sites[_called(node)].append(node)
        self._layers = {name: _layer(self._modules[name], wanted[prefix + name]) for name in self._sites}
        for name, sites in self._sites.items():
            if len(sites) == 1:
                self._take_pad(name, sites[0])
                self._take_sum(name, sites[0])
            self._take_activation(name, sites)
        for name, sites in self._sites.items():
            self._hand_on_bytes(name, sites)
        self._put_on_grids()
        for name, layer in self._layers.items():
            self.module.add_submodule(name, layer)
        self._graph.lint()
        self.module.recompile()

    def _take_pad(self, name: str, site: fx.Node) -> None:
        """A padding of zeros before the layer, where it can do that itself."""
        layer, conv, before = self._layers[name], self._modules[name], site.all_input_nodes[0]
        pad = self._module(before)
        if not (isinstance(layer, QuantizedConv2d) and isinstance(conv, nn.Conv2d)):
            return
        if isinstance(pad, nn.ZeroPad2d) and len(before.users) == 1 and layer.after(conv, pad):
            self._replace(before, before.all_input_nodes[0])

    def _take_sum(self, name: str, site: fx.Node) -> None:
        """The sum with another layer's map that is there by then, and that nobody reads afterwards."""
        layer, total = self._layers[name], _only_user(site)
        if not isinstance(layer, QuantizedConv2d) or total is None or total.target not in _SUMS:
            return
        others = [node for node in total.all_input_nodes if node is not site]
        if len(others) != 1 or len(total.args) != 2 or total.kwargs or _called(others[0]) not in self._layers:
            return
        place = {node: number for number, node in enumerate(self._graph.nodes)}
        if all(place[node] < place[site] for node in (others[0], *others[0].users) if node is not total):
            site.args, layer.summed = (*site.args, others[0]), True
            self._replace(total, site)

    def _take_activation(self, name: str, sites: Sequence[fx.Node]) -> None:
        """What follows the layer wherever it is called."""
        followers = [_only_user(site) for site in sites]
        kinds = {type(self._activation(node)) for node in followers}
        activation = self._activation(followers[0])
        if len(kinds) == 1 and activation is not None and self._layers[name].then(activation):
            for node, site in zip(followers, sites, strict=True):
                assert node is not None
                self._replace(node, site)

    def _hand_on_bytes(self, name: str, sites: Sequence[fx.Node]) -> None:
        """Bytes out, where only layers with one and the same grid read them."""
        readers = [(site, reader) for site in sites for reader in site.users]
        sums = any(len(site.args) > 1 for site in sites)  # what is added to stays float32
        if readers and not sums and all(self._reads(reader, site) for site, reader in readers):
            grids = {self._layers[_called(reader)].given for _, reader in readers}
            if len(grids) == 1:
                self._layers[name].made = grids.pop()

    def _put_on_grids(self) -> None:
        """Quantise what comes to the layers in float32, once for all that read it."""
        for value in list(self._graph.nodes):
            layer = self._layers.get(_called(value))
            readers = [user for user in value.users if _called(user) in self._layers and user.args[0] is value]
            if layer is not None and layer.made is not None:
                continue
            for number, grid in enumerate(dict.fromkeys(self._layers[_called(user)].given for user in readers)):
                name = f"grid_{value.name}_{number}"
                self.module.add_submodule(name, Quantize(grid))
                with self._graph.inserting_after(value):
                    made = self._graph.call_module(name, (value,))
                for user in readers:
                    if self._layers[_called(user)].given == grid:
                        user.args = (made, *user.args[1:])

    def _reads(self, reader: fx.Node, value: fx.Node) -> bool:
        """Whether it is a layer that takes the value as its input, and not as what is added."""
        return _called(reader) in self._layers and reader.args[0] is value and value not in reader.args[1:]

    def _module(self, node: fx.Node | None) -> nn.Module | None:
        return None if node is None else self._modules.get(_called(node))

    def _activation(self, node: fx.Node | None) -> nn.Module | None:
        return nn.ReLU() if node is not None and node.target in _RECTIFIERS else self._module(node)

    def _replace(self, node: fx.Node, other: fx.Node) -> None:
        node.replace_all_uses_with(other)
        self._graph.erase_node(node)


def _layer(layer: nn.Module, given: Grid) -> Quantized:
    if isinstance(layer, nn.Conv2d):
        return QuantizedConv2d(layer, given)
    assert isinstance(layer, nn.Linear)
    return QuantizedLinear(layer, layer.columns if isinstance(layer, ChannelsLastLinear) else layer.weight, given)


def _called(node: fx.Node) -> str:
    """The name of the module that is called there, or nothing."""
    return str(node.target) if node.op == "call_module" else ""


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
