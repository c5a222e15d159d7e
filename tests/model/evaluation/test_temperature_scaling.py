"""Temperature scaling changes scores as its formula says, and a fit finds the correction that was applied."""

import numpy as np
import pytest

from model.evaluation.operating_points import expected_calibration_error
from model.evaluation.temperature_scaling import TemperatureScaling, fit_temperature_scaling, scale_scores

LOGITS = np.array([[0.3, 2.0, -1.0], [1.0, 1.5, 4.0]])


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_a_temperature_divides_the_logits() -> None:
    expected = _softmax(LOGITS / 2)
    scores = scale_scores(_softmax(LOGITS), np.array([1, 2]), TemperatureScaling(temperature=2.0))
    assert scores == pytest.approx([expected[0, 1], expected[1, 2]])


def test_a_background_correction_adds_to_its_logit_alone() -> None:
    expected = _softmax(LOGITS / 2 + [1.5, 0, 0])
    scores = scale_scores(_softmax(LOGITS), np.array([1, 2]), TemperatureScaling(2.0, 1.5))
    assert scores == pytest.approx([expected[0, 1], expected[1, 2]])


def test_no_correction_changes_no_score_and_an_inverse_takes_one_out_again() -> None:
    class_ids, scaling = np.array([1, 2]), TemperatureScaling(0.7, 1.2)
    plain = _softmax(LOGITS)[[0, 1], class_ids]
    assert scale_scores(_softmax(LOGITS), class_ids, TemperatureScaling()) == pytest.approx(plain)
    corrected = _softmax(LOGITS / 0.7 + [1.2, 0, 0])
    assert scale_scores(corrected, class_ids, scaling.inverse()) == pytest.approx(plain)


@pytest.mark.parametrize(("temperature", "background"), [(0.6, 0.0), (1.0, 1.5), (1.7, -0.5)])
def test_the_fit_returns_the_correction_that_was_applied(temperature: float, background: float) -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.uniform(0.02, 0.98, 20_000)
    right = generator.random(20_000) < probabilities
    # The logits of a network whose scores equal these probabilities after the correction.
    logits = (np.stack((np.log(1 - probabilities), np.log(probabilities)), axis=1) - [background, 0]) * temperature
    distributions, class_ids = _softmax(logits), np.ones(20_000, np.int64)
    fitted = fit_temperature_scaling(distributions, class_ids, right)
    assert fitted.temperature == pytest.approx(temperature, rel=0.05)
    assert fitted.background == pytest.approx(background, abs=0.1)
    assert expected_calibration_error(scale_scores(distributions, class_ids, fitted), right) < 0.02


def test_a_temperature_can_be_fitted_alone() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.uniform(0.02, 0.98, 20_000)
    right = generator.random(20_000) < probabilities
    distributions = _softmax(np.stack((np.log(1 - probabilities), np.log(probabilities)), axis=1) * 1.7)
    fitted = fit_temperature_scaling(distributions, np.ones(20_000, np.int64), right, background=False)
    assert fitted.temperature == pytest.approx(1.7, rel=0.05)
    assert fitted.background == 0.0


def test_no_detections_need_no_correction() -> None:
    assert fit_temperature_scaling(np.empty((0, 3)), np.empty(0, np.int64), np.empty(0, bool)) == TemperatureScaling()
