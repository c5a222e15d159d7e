"""What int8 could bring at most: every convolution of a detector's dense part, in each number format.

    python -m benchmarks.int8

The convolutions run one by one with the shapes that a picture of 480 x 640 gives them: in float32, in bfloat16 where
the processor multiplies it, and in int8 as torch's own quantised kernels (oneDNN) do it, unsigned bytes in and out and
weights by channel. Quantising the pixels, sums of two maps, whatever else stays in another format: all of that is left
out, so that the last column is what nobody can pass.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import pairs, report
from model.detector import Detector
from model.runtime.malloc import configure_malloc
from model.runtime.precision import multiplies_bf16
from model.transform import exact_canvas

FORMATS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Layer:
    """A convolution and what goes into it, float32 [1, C, H, W] channels last."""

    conv: nn.Conv2d
    shape: tuple[int, ...]


def layers(detector: Detector) -> list[Layer]:
    """The convolutions of backbone, pyramid and RPN head in the order in which they run, one picture on its canvas."""
    seen: list[Layer] = []

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        seen.append(Layer(module, tuple(given[0].shape)))

    convolutions = [module for module in detector.model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_pre_hook(note) for module in convolutions]
    canvas = exact_canvas(detector.config.transform, 480, 640)
    with torch.inference_mode():
        detector.model.run_convolutions(torch.randn(1, 3, *canvas).contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    return seen


def call(layer: Layer, kind: str) -> Callable[[], object]:
    """One run of the layer in that format; what can be prepared is."""
    conv = layer.conv
    pixels = torch.randn(layer.shape).contiguous(memory_format=torch.channels_last)
    if kind != "int8":
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]
        short = nn.utils.skip_init(
            nn.Conv2d,
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            groups=conv.groups,
            bias=conv.bias is not None,
        )
        short.load_state_dict(conv.state_dict())
        short = short.to(dtype).to(memory_format=torch.channels_last)
        pixels = pixels.to(dtype)
        return lambda: short(pixels)
    operations = torch.ops.onednn
    scales = conv.weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-12) / 127
    weight = (conv.weight / scales[:, None, None, None]).round().clamp(-127, 127).to(torch.int8)
    given = (pixels * 32 + 128).round().clamp(0, 255).to(torch.uint8)
    place = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
    packed = operations.qconv_prepack(weight, scales, 1 / 32, 128, *place, list(layer.shape))
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    rest = (1 / 32, 128, torch.uint8, "none", [], "")
    return lambda: operations.qconv2d_pointwise(given, 1 / 32, 128, packed, scales, zeros, conv.bias, *place, *rest)


def measure(preset: str, rounds: int) -> dict[str, Any]:
    """Seconds of all convolutions together, by format: medians of ``rounds`` turns."""
    detector = Detector.from_checkpoint(pairs.checkpoint(preset), device="cpu", precision="fp32")
    kinds = [kind for kind in FORMATS if kind != "bf16" or multiplies_bf16(torch.device("cpu"))]
    found: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
    with torch.inference_mode():
        for layer in layers(detector):
            calls = {kind: call(layer, kind) for kind in kinds}
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            for turn in range(rounds + 1):
                for kind, run in calls.items():
                    begun = time.perf_counter()
                    run()
                    if turn:  # the first warms up
                        seconds[kind].append(time.perf_counter() - begun)
            for kind in kinds:
                found[kind].append(seconds[kind])
    return {
        "preset": preset,
        "convolutions": len(found["fp32"]),
        "seconds": {kind: sum(statistics.median(one) for one in every) for kind, every in found.items()},
    }


def tables(result: Mapping[str, Any]) -> list[report.Table]:
    """For the page and the terminal."""
    made = []
    for vectors, run in result.items():
        kinds = [kind for kind in FORMATS if any(kind in row["seconds"] for row in run["rows"])]
        made.append(
            report.Table(
                f"All convolutions of the dense part, one picture, ms; {vectors}. {report.where(run['machine'])}; "
                f"{run['rounds']} rounds.",
                ("preset", "convolutions", *kinds, "int8 to the best other"),
                [
                    (
                        row["preset"],
                        str(row["convolutions"]),
                        *(f"{row['seconds'][kind] * 1000:.1f}" for kind in kinds),
                        f"{min(row['seconds'][k] for k in kinds if k != 'int8') / row['seconds']['int8']:.2f}x",
                    )
                    for row in run["rows"]
                ],
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(pairs.PRESETS), choices=pairs.PRESETS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    configure_malloc()
    machine = report.environment("cpu")
    rows = [measure(preset, arguments.rounds) for preset in arguments.presets]
    result = report.load("int8")
    result[report.vectors(machine)] = {"machine": machine, "rounds": arguments.rounds, "rows": rows}
    report.save("int8", result)
    for table in tables(result):
        table.print()


if __name__ == "__main__":
    main()
