"""Number format, from what was asked and what there is."""

from __future__ import annotations

import torch

from model.runtime.int8 import can_quantize

# By name, the type of what is computed in floating point.
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has products of bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_precision(asked: str, device: torch.device) -> str:
    """``auto`` is bf16 where the hardware multiplies it fast, and fp32 elsewhere.

    That is a GPU of compute capability 8 or more, or a CPU with AMX or with AVX512's bf16 dot products (docs/engine.md
    has the figures). Elsewhere bf16 is emulated, slower than fp32 (on a CPU by ``rounding.py``).
    """
    if asked == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if asked not in PRECISIONS:
        raise ValueError(f"precision must be auto, {', '.join(PRECISIONS)}, not {asked!r}.")
    if asked == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 is for GPUs; on a CPU use bf16, int8 or fp32.")
    if asked == "int8" and not can_quantize(device):
        raise ValueError("precision int8 is for CPUs, by oneDNN's operators in torch; use bf16 or fp32.")
    return asked
