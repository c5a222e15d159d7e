"""What changes the weights of a detector that will only infer: the same for the process that serves and the one that
compiles, which gets the changed weights and must make room for them.
"""

from __future__ import annotations

import torch

from model.faster_rcnn import FasterRCNN
from model.runtime.flatten import flatten_channels_last
from model.runtime.fold import fold_norms
from model.runtime.padding import pad_in_convolutions


def for_inference(model: FasterRCNN, device: torch.device) -> None:
    """Change ``model`` in place for ``device``, where it will run; before it is cast, so that weights are rounded once.

    Its state dict has other keys and shapes from now on. Raises ``ValueError`` for norms that cannot be folded.
    """
    fold_norms(model.eval().requires_grad_(False))
    if device.type == "cpu":  # a GPU's kernels are made for the usual sizes
        pad_in_convolutions(model)
    flatten_channels_last(model.roi_heads.box_head, model.config.roi_head.resolution)
