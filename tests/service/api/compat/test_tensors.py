"""Broken requests of the Open Inference Protocol."""

import pytest

from tests.service.conftest import Live


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"inputs": []}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": ["x"], "data": []}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": 5}]}',
        b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [2, 2, 3], "data": [1, 2]}]}',
        b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 3], "data": [900, -1, 0]}]}',
        b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}]}',
        b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": "x"}}]}',
    ],
)
def test_broken_inference_requests_are_refused_with_a_message(compat_service: Live, body: bytes) -> None:
    response = compat_service.client.post("/v2/models/fake/infer", content=body)
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]
