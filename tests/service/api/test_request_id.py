"""The id of a request."""

import pytest


@pytest.mark.parametrize("request_id", ["a b", "x" * 200, "<script>", ""])
def test_an_unsafe_request_id_is_replaced(service, request_id):
    response = service.client.get("/livez", headers={"X-Request-ID": request_id})
    assert response.headers["x-request-id"] != request_id
    assert len(response.headers["x-request-id"]) == 32
