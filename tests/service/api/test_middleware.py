"""The middleware: security headers, request id, log, unexpected failures."""

import asyncio
import json
import logging
import time
from unittest.mock import Mock

import pytest

from service.api.middleware import RequestContextMiddleware
from service.metrics import Metrics
from service.server.logging import JsonFormatter, TextFormatter
from tests.service.exchange import check_problem


def test_every_response_has_security_headers_and_an_id(service, cat_jpeg):
    for response in (
        service.detect(cat_jpeg),
        service.detect(b""),
        service.client.get("/nowhere"),
        service.client.get("/docs"),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["x-request-id"]


def test_an_unexpected_failure_is_a_problem_without_internals(serve_faulty, faulty, encoded, monkeypatch):
    with serve_faulty() as live:
        monkeypatch.setattr(faulty, "canvas_for", lambda *_: 1 / 0)
        response = live.detect(encoded())
        assert response.status_code == 500
        assert response.json()["code"] == "internal_error"
        assert response.json()["request_id"] == response.headers["x-request-id"]
        assert "division" not in response.text
        assert response.headers["x-content-type-options"] == "nosniff"


def test_the_log_has_one_line_a_request_and_no_secrets(serve_faulty, encoded, caplog):
    with caplog.at_level(logging.INFO, "frcnn"), serve_faulty() as live:
        live.detect(encoded(), headers={"X-Request-ID": "one", "X-API-Key": "secret-key"})
        live.client.get("/livez")
    lines = [record for record in caplog.records if record.name == "frcnn.access"]
    assert len(lines) == 1
    entry = json.loads(JsonFormatter().format(lines[0]))
    assert (entry["request_id"], entry["route"], entry["status"]) == ("one", "/detect", 200)
    assert entry["timings_ms"]["total"] > 0
    text = TextFormatter().format(lines[0])
    assert "status=200" in text
    assert "\n" not in text
    assert "secret-key" not in text + json.dumps(entry)
    assert len(text) < 700


@pytest.mark.parametrize(("connected", "status"), [(True, 503), (False, 499)])
async def test_a_request_that_the_server_cancels_is_answered_and_counted_as_what_it_is(connected, status):
    started, sent, metrics = asyncio.Event(), [], Metrics()

    async def app(scope, receive, send):
        started.set()
        await asyncio.Event().wait()

    async def receive():
        if connected:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    middleware = RequestContextMiddleware(app, metrics, Mock())
    scope = {"type": "http", "method": "GET", "path": "/slow", "query_string": b"", "headers": []}
    request = asyncio.create_task(middleware(scope, receive, send))
    await started.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == status
    counted = metrics.registry.get_sample_value("frcnn_requests_total", {"route": "other", "status": str(status)})
    assert counted == 1


def test_cookies_reach_no_route_since_parsing_them_may_take_long(service):
    started = time.process_time()
    response = service.client.get("/livez", headers={"Cookie": 'a="' + '\\"' * 25_000 + '"'})
    assert response.status_code == 200
    assert time.process_time() - started < 1


def test_a_query_of_many_options_is_refused_on_every_route(service):
    names = "&".join(map(str, range(1000)))
    for path in ("/livez", "/model", "/nothing"):
        check_problem(service.client.get(f"{path}?{names}"), 422, "query")
