"""Make a trained model ready for inference: the passes, their order and its reasons.

A pass is a function in a file of its own. It rewrites layers of the model in place, to make it faster or to bring it
into the chosen precision, and returns how many layers it has rewritten. Each can be left out. Folding, flattening and
oneDNN's operator change results by rounding at most; what int8, bf16 and Winograd's algorithm change, their files say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from model.faster_rcnn import FasterRCNN
from model.runtime.buckets import Buckets, CanvasMode
from model.runtime.cpu.emulate_bf16 import emulate_bf16
from model.runtime.cpu.int8.layers import Range
from model.runtime.cpu.int8.quantize import quantize
from model.runtime.cpu.onednn_conv import can_pack, pack_convolutions
from model.runtime.cpu.winograd import use_winograd
from model.runtime.flatten_channels_last import flatten_channels_last
from model.runtime.fold_batchnorm import fold_batchnorm
from model.runtime.precision import PRECISIONS, choose_precision, measure_probe_drift, multiplies_bf16

_PROBE_SIZE = (480, 640)  # height and width of the image that precisions are compared on


@dataclass(frozen=True)
class OptimizationReport:
    """The outcome of ``optimize_for_inference``.

    precision: what the model computes in, never ``auto``. dtype: of the pixels that it takes. optimizations: a sentence
    for each pass that changed something, in their order, and one for the reason of an automatic precision.
    """

    precision: str
    dtype: torch.dtype
    optimizations: tuple[str, ...]


def optimize_for_inference(
    model: FasterRCNN,
    device: torch.device,
    precision: str = "auto",
    *,
    canvas: CanvasMode = "buckets",
    ranges: Mapping[str, Range] | None = None,
) -> tuple[FasterRCNN, OptimizationReport]:
    """Make ``model``, in float32 on the CPU, ready for inference on ``device``; it is changed in place, and returned.

    precision: a name of ``PRECISIONS`` or ``auto``. canvas: ``exact`` is for comparing with other implementations, and
    leaves Winograd's algorithm out, which changes the last digits. ranges: the lowest and the highest input of each
    layer by its name, for int8. Raises ``ValueError`` for a precision that the device does not offer, a missing range,
    and a norm that cannot be folded.
    """
    model.eval().requires_grad_(False)
    sentences: list[str] = []

    # Before the model is cast, so that each weight is rounded once. Before int8, which quantizes the folded weights.
    if norms := fold_batchnorm(model):
        sentences.append(f"{norms} batch norms are folded into the convolutions before them.")
    # Before int8, which replaces fc6 and its flattening together.
    if flatten_channels_last(model):
        sentences.append("Pooled regions are flattened channels last, without a copy.")

    # On a GPU `auto` measures the model as the passes for every precision have left it.
    probe_canvas = Buckets(model.config.transform, canvas).canvas_for(*_PROBE_SIZE)
    precision, reason = choose_precision(
        precision, device, lambda name: measure_probe_drift(model, device, PRECISIONS[name], probe_canvas)
    )
    if reason:
        sentences.append(reason)
    dtype = PRECISIONS[precision]

    if precision == "int8":
        layers = quantize(model, ranges or {})
        sentences.append(f"{layers} layers multiply int8, by oneDNN's operators.")
    emulated = precision == "bf16" and device.type == "cpu" and not multiplies_bf16(device)
    if emulated:
        emulate_bf16(model)
        dtype = torch.float32
        sentences.append(
            "This processor has no products of bf16: float32 arithmetic on rounded numbers gives the results of bf16, "
            "without its speed."
        )
    model = model.to(device, dtype).to(memory_format=torch.channels_last)

    # After the cast, whose memory layout they build on. Not where bf16 is emulated: the layers that they replace have
    # the hooks that round. Winograd first: it takes the convolutions that it is faster for, oneDNN's operator the rest.
    if device.type == "cpu" and not emulated:
        if dtype == torch.float32 and canvas != "exact" and (winograd := use_winograd(model)):
            sentences.append(f"{winograd} wide 3x3 convolutions use Winograd's algorithm.")
        if can_pack(device, dtype) and (packed := pack_convolutions(model)):
            sentences.append(f"{packed} convolutions use oneDNN's operator, with their weights laid out once.")
    return model, OptimizationReport(precision, dtype, tuple(sentences))
