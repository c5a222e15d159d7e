"""Small networks of every preset, with random weights that keep the values of all layers at a similar size."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from model.checkpoint import ResolvedCheckpoint
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.presets import PRESETS

CLASSES = ("__background__", "cat", "dog")


@cache
def network(name: str) -> FasterRCNN:
    """Make the network of a preset with random weights, for a short side of 96 pixels, 24 proposals, thin layers."""
    config = next(preset for preset in PRESETS if preset.name == name).with_classes(len(CLASSES))
    torch.manual_seed(0)
    transform = replace(config.transform, min_size=96, max_size=128)
    rpn = replace(config.rpn, pre_nms=100, post_nms=24)
    thin = {name: (64,) * len(getattr(config.roi_head, name)) for name in ("fc_channels", "conv_channels")}
    head = replace(config.roi_head, **thin)
    model = FasterRCNN(replace(config, transform=transform, rpn=rpn, roi_head=head)).eval()

    def to_unit_scale(layer: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        scale = output.std().clamp(min=1e-30)
        layer.weight /= scale  # type: ignore[operator]
        return output / scale

    # Random weights let values die away from layer to layer, or grow; a trained network's do neither.
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(to_unit_scale) for layer in layers]
    with torch.no_grad():
        maps = model.run_convolutions(torch.randn(1, 3, 96, 128)).maps
        model.roi_heads(maps, torch.tensor([[0.0, 0.0, 0.0, 64.0, 64.0], [0.0, 30.0, 20.0, 100.0, 90.0]]))
    for hook in hooks:
        hook.remove()
    return model


def small(name: str, device: str, precision: str = "fp32") -> Detector:
    """Make a detector of ``network``; with exact canvases a CPU sums in the same order as the simulated GPU."""
    checkpoint = ResolvedCheckpoint(name="random", path=Path("random"), preset=name, classes=CLASSES)
    return Detector(deepcopy(network(name)), checkpoint, device=device, precision=precision, canvas="exact")
