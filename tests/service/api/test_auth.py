"""API keys."""

import pytest

from service.settings import SettingsError
from tests.service.exchange import send, wait_for


def test_requests_need_a_key_where_a_key_file_is_set(serve_faulty, encoded, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# of the cameras\nfirst-key\n\nsecond-key\n")
    with serve_faulty(api_keys_file=keys) as live:
        live.app.state.handler.keys.CHECK_EVERY = 0
        for headers in (
            {},
            {"X-API-Key": "wrong"},
            {"Authorization": "Basic first-key"},
            {"X-API-Key": "# of the cameras"},
        ):
            response = live.detect(encoded(), headers=headers)
            assert response.status_code == 401
            assert "Bearer" in response.headers["www-authenticate"]
        assert live.client.get("/model").status_code == 401
        assert live.detect(encoded(), headers={"X-API-Key": "first-key"}).status_code == 200
        assert live.detect(encoded(), headers={"Authorization": "Bearer second-key"}).status_code == 200
        assert live.client.get("/readyz").status_code == 200
        keys.write_text("third-key\n")
        assert live.detect(encoded(), headers={"X-API-Key": "first-key"}).status_code == 401
        assert live.detect(encoded(), headers={"X-API-Key": "third-key"}).status_code == 200


def test_a_key_file_without_a_key_stops_the_start(serve_faulty, tmp_path):
    for name, text in (("empty", "# none\n"), ("missing", None)):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(SettingsError, match="FRCNN_API_KEYS_FILE"), serve_faulty(api_keys_file=tmp_path / name):
            pass


def test_the_requests_of_one_key_are_bounded_and_other_keys_are_served(
    serve_faulty,
    faulty,
    clients,
    tmp_path,
    small,
):
    (tmp_path / "keys").write_text("greedy\nmodest\n")
    with serve_faulty(api_keys_file=tmp_path / "keys", max_inflight_per_key=2) as live:
        faulty.gate.clear()
        requests = [send(clients, live, small, **{"X-API-Key": "greedy"}) for _ in range(2)]
        wait_for(lambda: live.app.state.pipeline.batcher.waiting == 2)
        refusal = live.detect(small, headers={"X-API-Key": "greedy"})
        assert (refusal.status_code, refusal.json()["code"]) == (429, "key_busy")
        modest = send(clients, live, small, **{"X-API-Key": "modest"})
        wait_for(lambda: live.app.state.pipeline.batcher.waiting == 3)
        faulty.gate.set()
        assert [response.result().status_code for response in (*requests, modest)] == [200] * 3
        assert live.detect(small, headers={"X-API-Key": "greedy"}).status_code == 200


def test_a_key_file_that_becomes_binary_refuses_keys_without_an_error(serve_faulty, tmp_path, small):
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    with serve_faulty(api_keys_file=keys) as live:
        live.app.state.handler.keys.CHECK_EVERY = 0
        keys.write_bytes(b"\xff\xfe\x00broken")
        assert live.detect(small, headers={"X-API-Key": "first"}).status_code == 401
