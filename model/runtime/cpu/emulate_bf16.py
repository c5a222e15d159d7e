"""A pass: emulate bfloat16, on a processor that does not multiply it, by float32 arithmetic on rounded numbers.

torch's bfloat16 is many times slower than float32 on such a processor. Hardware with bfloat16 multiplies numbers of 8
bits exactly, sums the products in float32 and rounds the sum once. Float32 on rounded numbers does the same, so that
its outputs are those of bfloat16, but for the order of the sums. The answers of a server in bf16 can so be checked on
any processor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def emulate_bf16(model: nn.Module) -> int:
    """Round weights to bfloat16 now, and inputs and outputs of layers at each call; return the number of layers.

    In place. model: in float32, which it stays. Between two layers values may stay unrounded, as in a kernel that
    computes several operators at once.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(_rounded(parameter))

    def round_inputs(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(_rounded(tensor) for tensor in inputs)

    def round_output(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _rounded(output)

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.register_forward_pre_hook(round_inputs)
        layer.register_forward_hook(round_output)
    return len(layers)


def _rounded(values: Tensor) -> Tensor:
    """Round to bfloat16; the result has the type of ``values``."""
    return values.bfloat16().to(values.dtype)
