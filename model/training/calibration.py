"""What a detector's layers take in on pictures such as it will see: what int8 puts its 256 steps between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoint import write_ranges
from model.detector import Detector
from model.runtime.quantization import quantizable
from model.transform import Image


def calibrate(detector: Detector, pictures: Sequence[Callable[[], Image]]) -> tuple[Path, int]:
    """Write what ``observe`` sees beside the detector's weights; returns the file and the number of layers.

    pictures: each is decoded when its turn comes. Raises as ``observe`` does, and ``OSError``.
    """
    ranges = observe(detector, (picture() for picture in pictures))
    return write_ranges(detector.checkpoint, ranges, len(pictures)), len(ranges)


def observe(detector: Detector, pictures: Iterable[Image]) -> dict[str, tuple[float, float]]:
    """The lowest and the highest value that each layer was given, by its name, over all pictures uint8 [H, W, 3].

    detector: in fp32, eager. Labels are not needed, but pictures that are like those to come. Raises ``ValueError``
    where there are no pictures, or the detector is in another precision.
    """
    if detector.precision != "fp32":
        raise ValueError(f"Ranges are seen in fp32, not in {detector.precision}.")
    layers = dict(detector.model.named_modules())
    seen: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given[0].numel():
                low, high = (float(value) for value in torch.aminmax(given[0]))
                before = seen.get(name, (low, high))
                seen[name] = (min(low, before[0]), max(high, before[1]))

        return note

    hooks = [layers[name].register_forward_pre_hook(watch(name)) for name in quantizable(detector.model)]
    try:
        for picture in pictures:
            detector.detect([picture])
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError("There are no pictures to see ranges on.")
    return seen
