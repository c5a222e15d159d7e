"""``/livez`` and ``/readyz``."""

import os
import signal

from service.api.routes import health
from tests.service.exchange import send, wait_for


def test_a_started_service_is_alive_and_ready(service):
    assert service.client.get("/livez").json() == {"status": "alive"}
    assert service.client.get("/readyz").json() == {"status": "ready"}


def test_a_service_whose_images_wait_to_be_decoded_is_not_ready(serve_faulty, clients, small, monkeypatch):
    monkeypatch.setattr(health, "_LONGEST_WAIT", 0.1)
    with serve_faulty(image_processes=2) as live:
        pids = live.app.state.pipeline.images.pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        responses = [send(clients, live, small) for _ in range(3)]
        wait_for(lambda: live.client.get("/readyz").status_code == 503)
        assert live.client.get("/readyz").json()["code"] == "unavailable"
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert [response.result().status_code for response in responses] == [200] * 3
        assert live.client.get("/readyz").json() == {"status": "ready"}
