"""fc6 of a trained detector in two layers of a lower rank: most of its work goes, and next to nothing of what it knows.

Fast R-CNN (arXiv 1504.08083, 3.1) cuts off the layer's SVD. Here the cut is made where it is least felt by the next
layer, for the regions that the detector itself proposes on its training pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import canonical, factored, read_state, save
from model.detector import Detector
from model.roi_head import BoxHead
from model.training.samples import Dataset


def factor(
    detector: Detector, dataset: Dataset, rank: int, target: Path, *, pictures: int = 200, seed: int = 0
) -> tuple[str, int]:
    """Write ``detector`` with fc6 of that ``rank`` to ``target``; returns the file's SHA-256 and parameters.

    detector: in fp32, and eager; what its fc6 answers is seen on so many pictures of ``dataset``. Raises ``ValueError``
    where it has no fc6 of full rank, and for a rank out of range.
    """
    head = detector.model.roi_heads.box_head
    if not isinstance(head, BoxHead) or not isinstance(head.fc6, torch.nn.Linear):
        raise ValueError(f"{detector.checkpoint.name} has no fc6 of full rank that could be parted.")
    width = head.fc6.out_features
    if not 0 < rank < width:
        raise ValueError(f"The rank must be from 1 to {width - 1}, not {rank}.")
    squares, sums, above = torch.zeros(width, width).double(), torch.zeros(width).double(), torch.zeros(width).double()
    count = 0

    def watch(_module: Any, _inputs: Any, answers: Tensor) -> None:
        nonlocal count
        rows = answers.double()
        squares.add_(rows.T @ rows)
        sums.add_(rows.sum(0))
        above.add_((rows > 0).double().sum(0))
        count += len(rows)

    hook = head.fc6.register_forward_hook(watch)
    try:
        for index in np.random.default_rng(seed).permutation(len(dataset))[:pictures].tolist():
            detector.detect([dataset.load(index)])
    finally:
        hook.remove()
    mean = sums / count
    # An error is felt as much as fc7 makes of it, where the rectifier lets it through.
    weights = (above / count).clamp(min=1e-3).sqrt()
    if isinstance(fc7 := getattr(head, "fc7", None), torch.nn.Linear):
        weights *= fc7.weight.double().norm(dim=0)
    state = canonical(read_state(detector.checkpoint))
    state = factored(state, rank, mean, squares / count - torch.outer(mean, mean), weights)
    digest = save(target, state, preset=detector.config.name, classes=detector.checkpoint.classes, metrics={})
    return digest, sum(value.numel() for value in state.values())
