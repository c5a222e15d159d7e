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


def rank_of(state: Mapping[str, Tensor]) -> int | None:
    """The rank of fc6 where ``state`` has it in two layers."""
    return len(state[_FIRST]) if _FIRST in state else None


def with_rank_of(config: DetectorConfig, state: Mapping[str, Tensor]) -> DetectorConfig:
    """``config`` with fc6 in the form that it has in ``state``."""
    return replace(config, roi_head=replace(config.roi_head, fc6_rank=rank_of(state)))


def factored(
    state: Mapping[str, Tensor], rank: int, mean: Tensor, covariance: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """``state`` with its fc6 in two layers: of all products of that rank the one whose answers are nearest.

    Nearest in the mean square over the answers that fc6 gave to real regions, float64 of F channels: ``mean`` [F],
    ``covariance`` [F, F], and ``weights`` [F], how much an error in each channel counts. The plain truncated SVD knows
    only the layer, and takes all inputs for equally likely.
    """
    others = dict(state)
    weight, bias = others.pop(_WHOLE), others.pop(_WHOLE_BIAS)
    _, axes = torch.linalg.eigh(weights[:, None] * covariance * weights)
    axes = axes.flip(1)[:, :rank]  # the eigenvalues come rising
    inwards, outwards = axes.T * weights, axes / weights[:, None]
    first, second = inwards @ weight.double(), outwards
    # What is cut off stays at its mean.
    others[_FIRST], others[_SECOND] = first.to(weight.dtype), second.to(weight.dtype)
    others[_SECOND_BIAS] = (mean + outwards @ (inwards @ (bias.double() - mean))).to(bias.dtype)
    return others


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with its two layers of fc6 multiplied out, which answer the same."""
    others = dict(state)
    first, second = others.pop(_FIRST), others.pop(_SECOND)
    others[_WHOLE] = (second.double() @ first.double()).to(first.dtype)
    others[_WHOLE_BIAS] = others.pop(_SECOND_BIAS)
    return others
