"""The compatible interfaces heed the client's deadline, which the messages of their errors advise."""

import pytest

from tests.service.conftest import Live

PATHS = ("/v1/vision/detection", "/huggingface/object-detection", "/v2/models/{model}/infer")


@pytest.mark.parametrize("path", PATHS)
def test_the_timeout_header_is_read_and_checked(compat_service: Live, path: str, encoded) -> None:
    path = path.format(model=compat_service.client.get("/model").json()["name"])
    headers = {"X-Request-Timeout-Ms": "0", "Content-Type": "image/png"}
    response = compat_service.client.post(path, content=encoded(), headers=headers)
    assert response.status_code == 422
    assert "X-Request-Timeout-Ms" in response.text
