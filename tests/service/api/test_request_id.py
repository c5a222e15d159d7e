"""The id of a request."""

import pytest


@pytest.mark.parametrize("name", ["a b", "x" * 200, "<script>", ""])
def test_a_request_id_that_could_do_harm_is_replaced(service, name):
    answer = service.client.get("/livez", headers={"X-Request-ID": name})
    assert answer.headers["x-request-id"] != name
    assert len(answer.headers["x-request-id"]) == 32
