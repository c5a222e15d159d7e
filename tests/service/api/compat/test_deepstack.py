"""DeepStack's interface, as Frigate uses it."""

import httpx
import numpy as np
import pytest

from tests.service.conftest import FaultyDetector, Live, serving


def parse_as_frigate(response: httpx.Response, size: tuple[int, int]) -> np.ndarray:
    """Parse a response as Frigate's DeepStack detector does: rows of label, confidence, y1, x1, y2, x2."""
    rows = np.zeros((20, 6), np.float32)
    for i, prediction in enumerate(response.json().get("predictions") or []):
        if prediction["confidence"] < 0.4:
            break
        y1, x1, y2, x2 = (prediction[k] for k in ("y_min", "x_min", "y_max", "x_max"))
        rows[i] = [1, prediction["confidence"], y1 / size[1], x1 / size[0], y2 / size[1], x2 / size[0]]
    return rows


def test_a_deepstack_response_is_as_frigate_parses_it(compat_service: Live, encoded) -> None:
    form = {"api_key": "unused"}
    response = compat_service.client.post(
        "/v1/vision/detection", data=form, files={"image": encoded((48, 32), format="JPEG")}
    )
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["success"] is True
    assert isinstance(body["inferenceMs"], int)
    [prediction] = body["predictions"]
    assert prediction == {
        "label": "cat",
        "confidence": pytest.approx(0.9),
        "x_min": 0,
        "y_min": 0,
        "x_max": 48,
        "y_max": 32,
    }
    np.testing.assert_allclose(parse_as_frigate(response, (48, 32))[0], [1, 0.9, 0, 0, 1, 1], rtol=1e-6)


def test_min_confidence_is_the_threshold_and_predictions_are_limited_to_twenty(encoded) -> None:
    detector = FaultyDetector()
    with serving(lambda _: detector, deepstack=True) as live:
        image = encoded()
        live.client.post("/v1/vision/detection", files={"image": image}).raise_for_status()
        live.client.post("/v1/vision/detection", data={"min_confidence": "0.7"}, files={"image": image})
    first, second = (options[0] for options in detector.options[-2:])
    assert (first.score_threshold, first.max_detections) == (0.4, 20)
    assert second.score_threshold == 0.7


def test_a_deepstack_failure_keeps_its_status_and_has_success_and_error(compat_service: Live, encoded) -> None:
    response = compat_service.client.post("/v1/vision/detection", files={"image": b"\x89PNG\r\n\x1a\nno"})
    assert response.status_code in (400, 415)
    body = response.json()
    assert body["success"] is False
    assert body["error"] == body["detail"]
    assert not parse_as_frigate(response, (1, 1)).any()


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ({"min_confidence": ["0.5", "0.6"]}, "min_confidence"),
        ({"min_confidence": "nan"}, "min_confidence"),
        ({"min_confidence": ""}, "min_confidence"),
        ({"confidence": "0.5"}, "confidence: there is no such option"),
        ({"api_key": ["a", "b"], "classes": "unicorn"}, "classes"),
    ],
)
def test_a_wrong_field_is_422_and_named(compat_service: Live, encoded, form: dict, name: str) -> None:
    response = compat_service.client.post("/v1/vision/detection", data=form, files={"image": encoded()})
    assert response.status_code == 422, response.text
    assert name in response.json()["error"]
