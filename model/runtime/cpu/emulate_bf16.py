"""bfloat16 on a processor that has no products of it: float32 arithmetic on numbers rounded to bfloat16.

torch has no fast bfloat16 on such a CPU: a convolution takes it many times as long as in float32. But the hardware that
has such products multiplies numbers of 8 bits exactly, sums them in float32 and rounds the sum once. That is what
happens here too, so that the answers are those of bfloat16, to the order of the sums, and anybody can check them
anywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def round_weights_and_maps(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the float32 model's weights to ``dtype`` now, and from now on what its layers take and give.

    In place. Between two layers values may stay unrounded, as in a kernel that does several things at once.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(_rounded(parameter, dtype))

    def before(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(_rounded(one, dtype) for one in given)

    def after(_: nn.Module, __: Any, made: Tensor) -> Tensor:
        return _rounded(made, dtype)

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(before)
            layer.register_forward_hook(after)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).to(values.dtype)
