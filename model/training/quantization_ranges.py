"""Measure the range of each layer's input on sample images: int8 divides it into 255 steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoint import save_quantization_ranges
from model.detector import Detector
from model.runtime.cpu.int8.layers import Range
from model.runtime.cpu.int8.quantize import quantizable_layers
from model.structures import ImageArray


def write_quantization_ranges(detector: Detector, images: Iterable[ImageArray]) -> tuple[Path, int]:
    """Write the range of each layer's input over ``images`` beside the detector's weights.

    detector: in fp32. images: uint8 RGB [H, W, 3], like those that will be served; labels are not needed. Returns the
    file and the number of layers. Raises ``ValueError`` for no images and for a detector in another precision, and
    ``OSError``.
    """
    if detector.precision != "fp32":
        raise ValueError(f"Ranges are measured in fp32, not in {detector.precision}.")
    count = 0
    with record_ranges(detector.model) as ranges:
        for image in images:
            detector.detect([image])
            count += 1
    if not ranges:
        raise ValueError("There are no images to measure ranges on.")
    return save_quantization_ranges(detector.checkpoint, ranges, count), len(ranges)


@contextmanager
def record_ranges(model: nn.Module) -> Iterator[dict[str, Range]]:
    """Record within the block the lowest and the highest input of each quantizable layer of ``model``, by its name."""
    layers = dict(model.named_modules())
    ranges: dict[str, Range] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel():
                low, high = (float(value) for value in torch.aminmax(inputs[0]))
                before = ranges.get(name, (low, high))
                ranges[name] = (min(low, before[0]), max(high, before[1]))

        return record

    hooks = [layers[name].register_forward_pre_hook(recorder(name)) for name in quantizable_layers(model)]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()
