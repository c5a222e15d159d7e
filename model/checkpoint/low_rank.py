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


def fc6_rank_of(state: Mapping[str, Tensor]) -> int | None:
    """Return the rank of fc6 where ``state`` has it as two layers, None where it is one."""
    return len(state[_FIRST]) if _FIRST in state else None


def match_fc6_rank(config: DetectorConfig, state: Mapping[str, Tensor]) -> DetectorConfig:
    """Return ``config`` with fc6 in the form that it has in ``state``."""
    return replace(config, roi_head=replace(config.roi_head, fc6_rank=fc6_rank_of(state)))


def factor_fc6(
    state: Mapping[str, Tensor], rank: int, mean: Tensor, covariance: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """Return ``state`` with fc6 as two layers: of all products of that rank the one whose output is nearest.

    Nearest in the mean square over the outputs of fc6 for real regions, float64 of F channels: ``mean`` [F],
    ``covariance`` [F, F], and ``weights`` [F], how much an error in each channel counts. The plain truncated SVD uses
    the layer alone, and assumes that all inputs are equally likely.
    """
    factored = dict(state)
    weight, bias = factored.pop(_WHOLE), factored.pop(_WHOLE_BIAS)
    _, axes = torch.linalg.eigh(weights[:, None] * covariance * weights)
    axes = axes.flip(1)[:, :rank]  # eigh orders eigenvalues from the smallest
    inwards, outwards = axes.T * weights, axes / weights[:, None]
    first, second = inwards @ weight.double(), outwards
    factored[_FIRST], factored[_SECOND] = first.to(weight.dtype), second.to(weight.dtype)
    # The part of the output that is cut off is replaced by its mean.
    factored[_SECOND_BIAS] = (mean + outwards @ (inwards @ (bias.double() - mean))).to(bias.dtype)
    return factored


def merge_fc6(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with the two layers of fc6 multiplied into one, which gives the same output."""
    merged = dict(state)
    first, second = merged.pop(_FIRST), merged.pop(_SECOND)
    merged[_WHOLE] = (second.double() @ first.double()).to(first.dtype)
    merged[_WHOLE_BIAS] = merged.pop(_SECOND_BIAS)
    return merged
