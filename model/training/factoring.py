"""Factor fc6 of a trained detector into two layers of a lower rank, which saves most of its work for little accuracy.

Fast R-CNN (arXiv 1504.08083, 3.1) truncates the layer's SVD. Here the truncation minimises the error that the next
layer sees, for the regions that the detector itself proposes on its training images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import factor_fc6, normalise_keys, read_state, save
from model.data import Dataset
from model.detector import Detector
from model.roi_head import BoxHead


def factor_checkpoint(
    detector: Detector, dataset: Dataset, rank: int, target: Path, *, images: int = 200, seed: int = 0
) -> tuple[str, int]:
    """Write ``detector`` with fc6 of that ``rank`` to ``target``; return the file's SHA-256 and number of parameters.

    detector: in fp32. images: how many of ``dataset`` the outputs of fc6 are measured on. Raises ``ValueError`` where
    the detector has no fc6 of full rank, and for a rank out of range.
    """
    head = detector.model.roi_heads.box_head
    if not isinstance(head, BoxHead) or not isinstance(head.fc6, torch.nn.Linear):
        raise ValueError(f"{detector.checkpoint.name} has no fc6 of full rank that could be factored.")
    width = head.fc6.out_features
    if not 0 < rank < width:
        raise ValueError(f"The rank must be from 1 to {width - 1}, not {rank}.")
    products, sums, positive = (
        torch.zeros(width, width).double(),
        torch.zeros(width).double(),
        torch.zeros(width).double(),
    )
    count = 0

    def accumulate(_module: Any, _inputs: Any, outputs: Tensor) -> None:
        nonlocal count
        rows = outputs.double()
        products.add_(rows.T @ rows)
        sums.add_(rows.sum(0))
        positive.add_((rows > 0).double().sum(0))
        count += len(rows)

    hook = head.fc6.register_forward_hook(accumulate)
    try:
        for index in np.random.default_rng(seed).permutation(len(dataset))[:images].tolist():
            detector.detect([dataset.load(index)])
    finally:
        hook.remove()
    mean = sums / count
    # An error in a channel matters as much as fc7 amplifies it, in the share of cases that the ReLU lets through.
    weights = (positive / count).clamp(min=1e-3).sqrt()
    if isinstance(fc7 := getattr(head, "fc7", None), torch.nn.Linear):
        weights *= fc7.weight.double().norm(dim=0)
    state = normalise_keys(read_state(detector.checkpoint))
    state = factor_fc6(state, rank, mean, products / count - torch.outer(mean, mean), weights)
    digest = save(target, state, preset=detector.config.name, classes=detector.checkpoint.classes, metrics={})
    return digest, sum(value.numel() for value in state.values())
