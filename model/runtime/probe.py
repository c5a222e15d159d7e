"""What engines and forms of pooling are held against each other on: one picture of noise, and random regions of it."""

from __future__ import annotations

import torch
from torch import Tensor


def probe(canvas: tuple[int, int], regions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Float32 pixels [1, 3, H, W], channels last, and regions float32 [R, 5] of (0, box on the canvas).

    The same at every call.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, *canvas, generator=generator).to(device)
    corners = torch.rand(regions, 4, generator=generator) * min(canvas) / 2
    boxes = torch.cat((torch.zeros(regions, 1), corners[:, :2], corners[:, :2] + corners[:, 2:] + 1), dim=1)
    return pixels.contiguous(memory_format=torch.channels_last), boxes.to(device)
