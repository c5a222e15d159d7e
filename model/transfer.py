"""Copies between the host and a GPU that seldom make the host wait.

The host waits for a GPU wherever it reads a value, and wherever it copies from or to memory that is not pinned. After
each wait the GPU is idle until the next kernels arrive. On a CPU these functions cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def upload(values: Sequence[Any] | npt.NDArray[Any] | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy ``values`` (nested numbers, or an array) from the host to ``device`` as ``dtype``, without a wait."""
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def download(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copy tensors of one device to the host: on a GPU as the bytes of one tensor, with one wait for all of them.

    Tensors that are on the host already are returned as they are.
    """
    if not tensors or tensors[0].device.type != "cuda":
        return tensors
    flat = [_flat(tensor).view(torch.uint8) for tensor in tensors]
    packed = flat[0] if len(flat) == 1 else torch.cat(flat)
    # A copy to the host that does not block gets pinned memory from torch.
    arriving = packed.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(packed.device))
    arrived.synchronize()
    parts = arriving.split([tensor.numel() * tensor.element_size() for tensor in tensors])
    # Copies, so that no tensor keeps the pinned memory of all, and each is aligned for its type.
    return tuple(
        part.clone().view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)
    )


def _flat(tensor: Tensor) -> Tensor:
    """Lay all values out one after the other: a single value counts as contiguous whatever its stride."""
    flat = tensor.reshape(-1)
    return flat if flat.stride(0) == 1 else flat.clone(memory_format=torch.contiguous_format)


@lru_cache(maxsize=256)
def constant(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return ``numbers`` as float32 on ``device``, copied there once. A caller must not write to the result."""
    with torch.inference_mode(False):  # training may get it from the cache
        return upload(numbers, torch.float32, device)
