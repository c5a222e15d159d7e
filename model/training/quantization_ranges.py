"""What a detector's layers take in on pictures such as it will see: what int8 puts its 256 steps between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoint import save_quantization_ranges
from model.detector import Detector
from model.runtime.cpu.int8.quantize import quantizable
from model.transform import Image


def calibrate(detector: Detector, pictures: Iterable[Image]) -> tuple[Path, int]:
    """Write the range of each layer's input over all pictures, uint8 RGB [H, W, 3], beside the detector's weights.

    detector: in fp32, eager. Labels are not needed, but pictures that are like those to come. Returns the file and
    the number of layers. Raises ``ValueError`` where there are no pictures, or the detector is in another precision,
    and ``OSError``.
    """
    if detector.precision != "fp32":
        raise ValueError(f"Ranges are seen in fp32, not in {detector.precision}.")
    count = 0
    with watched(detector.model) as ranges:
        for picture in pictures:
            detector.detect([picture])
            count += 1
    if not ranges:
        raise ValueError("There are no pictures to see ranges on.")
    return save_quantization_ranges(detector.checkpoint, ranges, count), len(ranges)


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, tuple[float, float]]]:
    """The lowest and the highest value that each quantizable layer of ``model`` is given meanwhile, by its name."""
    layers = dict(model.named_modules())
    seen: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given[0].numel():
                low, high = (float(value) for value in torch.aminmax(given[0]))
                before = seen.get(name, (low, high))
                seen[name] = (min(low, before[0]), max(high, before[1]))

        return note

    hooks = [layers[name].register_forward_pre_hook(watch(name)) for name in quantizable(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
