"""fc6 as one layer, and as the product of two of a lower rank (Fast R-CNN, arXiv 1504.08083, 3.1: truncated SVD)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from model.config import DetectorConfig

_FC6 = "roi_heads.box_head.fc6"
_WHOLE, _FIRST, _SECOND = f"{_FC6}.weight", f"{_FC6}.0.weight", f"{_FC6}.1.weight"
_WHOLE_BIAS, _SECOND_BIAS = f"{_FC6}.bias", f"{_FC6}.1.bias"


def with_rank_of(config: DetectorConfig, state: Mapping[str, Tensor]) -> DetectorConfig:
    """``config`` with fc6 as it is in ``state``: a preset's rank is for new detectors, and a file may have another."""
    rank = len(state[_FIRST]) if _FIRST in state else None
    if rank is None and _WHOLE not in state:
        return config  # nothing of it: a part of a checkpoint, or a head of another kind
    return replace(config, roi_head=replace(config.roi_head, fc6_rank=rank))


def factored(state: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """``state`` with its fc6 in two layers: the product of that rank which is nearest, its singular values parted."""
    others = dict(state)
    weight = others.pop(_WHOLE)
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    roots = values[:rank].sqrt()
    others[_FIRST] = (roots[:, None] * right[:rank]).to(weight.dtype)
    others[_SECOND] = (left[:, :rank] * roots).to(weight.dtype)
    others[_SECOND_BIAS] = others.pop(_WHOLE_BIAS)
    return others


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with its two layers of fc6 multiplied out, which answer the same."""
    others = dict(state)
    first, second = others.pop(_FIRST), others.pop(_SECOND)
    others[_WHOLE] = (second.double() @ first.double()).to(first.dtype)
    others[_WHOLE_BIAS] = others.pop(_SECOND_BIAS)
    return others
