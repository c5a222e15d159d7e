"""A small state dict, and the classes that it is saved with."""

import torch
from torch import Tensor

CLASSES = ("__background__", "cat", "dog")
PRESET = "LITE"


def small_state() -> dict[str, Tensor]:
    """Make a state dict with a kernel, a tiny variance and a counter."""
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "norm.running_var": torch.full((4,), 1.2345678e-6),
        "norm.num_batches_tracked": torch.tensor(7),
    }
