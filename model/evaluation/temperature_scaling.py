"""Temperature scaling and a background offset: correct scores to equal the share of detections that is right.

K  detections      C  classes, background first
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.evaluation.operating_points import Floats


@dataclass(frozen=True)
class TemperatureScaling:
    """A correction of the last class layer: softmax(logits / temperature + background * [class 0]).

    Both numbers can be folded into that layer's weights and biases, so that the detector's code stays the same.
    """

    temperature: float = 1.0
    background: float = 0.0

    def inverse(self) -> TemperatureScaling:
        """Return the correction that undoes this one."""
        return TemperatureScaling(1 / self.temperature, -self.background * self.temperature)


def scale_distributions(distributions: npt.NDArray[np.floating], scaling: TemperatureScaling) -> Floats:
    """Return the class probabilities [K, C] after the correction, from those before."""
    logits = _scale_logits(_logits(distributions), scaling.temperature, scaling.background)
    return logits.softmax(dim=1).numpy()


def scale_scores(
    distributions: npt.NDArray[np.floating], class_ids: npt.NDArray[np.int64], scaling: TemperatureScaling
) -> Floats:
    """Return the scores [K] after the correction, from probabilities before it [K, C] and the detected classes [K]."""
    scores: Floats = scale_distributions(distributions, scaling)[np.arange(len(class_ids)), class_ids]
    return scores


def fit_temperature_scaling(
    distributions: npt.NDArray[np.floating],
    class_ids: npt.NDArray[np.int64],
    right: npt.NDArray[np.bool_],
    *,
    background: bool = True,
) -> TemperatureScaling:
    """Fit the correction whose scores make it likeliest that these detections are right and those wrong.

    distributions [K, C]: each detection's class probabilities before the correction; class_ids [K]: its class; right
    [K]: whether it is right. background: fit the offset too.

    Guo et al. (arXiv 1706.04599) fit a classifier's temperature by its log loss. Here the event is that the detection
    is right, box included, since that is what a score states. The offset accounts for a shift of the prior: the
    detector is trained on regions of which a quarter are objects, and serves on many more that are background or a
    second box on an object.
    """
    if not len(right):
        return TemperatureScaling()
    logits, verdicts = _logits(distributions), torch.from_numpy(right.astype(np.float64))
    rows = torch.arange(len(right)), torch.from_numpy(class_ids)
    unknowns = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of temperature, background
    mask = torch.tensor([1.0, float(background)], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([unknowns], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        log_temperature, offset = (unknowns * mask).unbind()
        scores = _scale_logits(logits, log_temperature.exp(), offset).softmax(dim=1)[rows].clamp(1e-12, 1 - 1e-12)
        value = torch.nn.functional.binary_cross_entropy(scores, verdicts)
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    log_temperature, offset = (unknowns * mask).tolist()
    return TemperatureScaling(math.exp(log_temperature), offset)


def _logits(distributions: npt.NDArray[np.floating]) -> torch.Tensor:
    """Return logits up to a constant, which the next softmax cancels."""
    return torch.from_numpy(np.log(np.maximum(distributions.astype(np.float64), 1e-30)))


def _scale_logits(
    logits: torch.Tensor, temperature: torch.Tensor | float, background: torch.Tensor | float
) -> torch.Tensor:
    """Return logits [K, C] divided by the temperature, with ``background`` added to those of class 0."""
    class_0 = torch.zeros(logits.shape[1], dtype=logits.dtype)
    class_0[0] = 1.0
    return logits / temperature + background * class_0
