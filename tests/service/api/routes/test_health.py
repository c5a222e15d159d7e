"""``/livez`` and ``/readyz``."""


def test_a_started_service_is_alive_and_ready(service):
    assert service.client.get("/livez").json() == {"status": "alive"}
    assert service.client.get("/readyz").json() == {"status": "ready"}
