"""Boxes for the tests of operators."""

import torch


def random_boxes(count: int, size: float, seed: int = 0) -> torch.Tensor:
    """Make boxes float32 [count, 4], the same for a seed, within about 1.6 times ``size`` pixels."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 0.6
    side = torch.rand(count, 2, generator=generator) * size
    return torch.cat((corner - 5, corner + side + 1), dim=1)  # some begin outside the canvas
