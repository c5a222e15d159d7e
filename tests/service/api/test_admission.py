"""Admission: what is refused from the head alone, and when errors are sent."""

import asyncio
import contextlib
import json
import logging
import math
import socket
import time

import pytest

from service.api.admission import Admission, Pacer
from tests.service.exchange import address, check_problem, hold, send, wait_for, waiting


@pytest.fixture
def no_burst(monkeypatch):
    """Let every error wait until its deadline."""
    monkeypatch.setattr(Pacer, "BURST", 0)
    monkeypatch.setattr(Pacer, "RATE", 0.001)


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Content-Length: 50000", *headers, "", ""]).encode()


def first_answer(live, request: bytes) -> bytes:
    with socket.create_connection(address(live), timeout=20) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def requests_by_status(live) -> dict[tuple[str, str], float]:
    """Return the value of ``frcnn_requests_total`` by route and status."""
    return {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for metric in live.app.state.pipeline.metrics.requests.collect()
        for sample in metric.samples
        if sample.name == "frcnn_requests_total"
    }


def test_the_key_is_checked_before_anything_else_of_the_request(serve_faulty, tmp_path):
    (tmp_path / "keys").write_text("key\n")
    with serve_faulty(api_keys_file=tmp_path / "keys") as live:
        response = live.client.post("/detect?unknown=1&score_threshold=9", headers={"X-Request-Timeout-Ms": "soon"})
        check_problem(response, 401, "API key")
        assert requests_by_status(live) == {("/detect", "401"): 1}
        assert live.client.post("/detect?unknown=1", headers={"X-API-Key": "key"}).status_code == 422


def test_a_full_queue_is_told_before_the_body_has_arrived_or_is_asked_for(serve_faulty, faulty, clients, small):
    with serve_faulty(max_queue=1) as live:
        first = hold(clients, live, faulty, small)
        for headers in ((), ("Expect: 100-continue",)):
            assert first_answer(live, head("/detect", *headers)).startswith(b"HTTP/1.1 429 ")
        faulty.gate.set()
        assert first.result().status_code == 200


def test_a_refusal_has_the_route_in_the_metrics_and_the_members_of_its_dialect(serve_faulty, faulty, clients, small):
    with serve_faulty(max_queue=1, deepstack=True, open_inference=True) as live:
        first = hold(clients, live, faulty, small)
        problem = check_problem(live.client.post("/v1/vision/detection"), 429)
        assert (problem["success"], problem["error"]) == (False, problem["detail"])
        assert "error" in check_problem(live.client.post("/v2/models/any/infer"), 429)
        assert "error" not in check_problem(live.detect(small), 429)
        assert requests_by_status(live)["/v1/vision/detection", "429"] == 1
        assert requests_by_status(live)["/v2/models/{name}/infer", "429"] == 1
        faulty.gate.set()
        assert first.result().status_code == 200


def test_other_methods_and_addresses_are_left_to_the_routing(serve_faulty, faulty, clients, small):
    with serve_faulty(max_queue=1) as live:
        first = hold(clients, live, faulty, small)
        assert live.client.post("/livez").status_code == 405
        assert live.client.post("/nowhere").status_code == 404
        assert live.client.get("/model").status_code == 200
        faulty.gate.set()
        assert first.result().status_code == 200


def test_errors_above_the_rate_wait_until_their_deadline_and_answers_never(
    serve_faulty, faulty, clients, small, no_burst
):
    with serve_faulty(max_queue=1) as live:
        first = hold(clients, live, faulty, small)
        started = time.monotonic()
        refusal = live.detect(small, headers={"X-Request-Timeout-Ms": "400"})
        assert time.monotonic() - started >= 0.35
        check_problem(refusal, 429)
        faulty.gate.set()
        assert first.result().status_code == 200
        assert live.detect(small).status_code == 200


def test_a_burst_of_errors_is_sent_at_once_and_the_next_one_later(serve_faulty, monkeypatch):
    monkeypatch.setattr(Pacer, "BURST", 3)
    monkeypatch.setattr(Pacer, "RATE", 2.0)
    with serve_faulty() as live:
        started = time.monotonic()
        for _ in range(5):
            assert live.client.post("/nowhere").status_code == 404
        assert time.monotonic() - started >= 0.9


def test_errors_without_a_key_do_not_delay_those_of_clients_with_one(
    serve_faulty, faulty, clients, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(Pacer, "BURST", 1)
    monkeypatch.setattr(Pacer, "RATE", 0.001)
    (tmp_path / "keys").write_text("key\n")
    with serve_faulty(max_queue=1, api_keys_file=tmp_path / "keys") as live:
        live.detect(small)
        flood = [send(clients, live, small, **{"X-Request-Timeout-Ms": "2500"}) for _ in range(3)]
        wait_for(lambda: live.metric("frcnn_inflight") == 3)
        faulty.gate.clear()
        first = send(clients, live, small, **{"X-API-Key": "key"})
        wait_for(lambda: waiting(live) == 1)
        assert live.detect(small, headers={"X-API-Key": "key"}).status_code == 429
        assert not any(response.done() for response in flood)
        faulty.gate.set()
        assert first.result().status_code == 200
        assert [response.result().status_code for response in flood] == [401] * 3


def test_a_client_that_leaves_while_its_error_waits_is_noticed_and_its_body_is_dropped(
    serve_faulty, faulty, clients, small, no_burst
):
    with serve_faulty(max_queue=1) as live:
        first = hold(clients, live, faulty, small)
        with socket.create_connection(address(live)) as connection:
            connection.sendall(head("/detect") + bytes(40_000))
            wait_for(lambda: live.metric("frcnn_inflight") == 2)
        wait_for(lambda: requests_by_status(live).get(("/detect", "499")) == 1)
        assert live.metric("frcnn_rejected_total", reason="client_gone") == 1
        faulty.gate.set()
        assert first.result().status_code == 200


def test_errors_that_wait_have_one_line_a_second_in_the_log_and_are_all_counted(serve_faulty, no_burst, caplog):
    with caplog.at_level(logging.INFO, "frcnn.access"), serve_faulty(timeout_ms=100) as live:
        for _ in range(3):
            assert live.client.post("/detect?unknown=1", headers={"X-Request-Timeout-Ms": "50"}).status_code == 422
        wait_for(lambda: sum(sum(r.delayed.values()) for r in caplog.records if hasattr(r, "delayed")) == 3)
        assert not [record for record in caplog.records if getattr(record, "status", None) == 422]
        assert requests_by_status(live)["/detect", "422"] == 3
        assert live.metric("frcnn_rejected_total", reason="bad_option") == 3


def test_probes_never_wait(serve_faulty, no_burst):
    with serve_faulty() as live:
        live.app.state.pipeline.batcher._draining = True
        started = time.monotonic()
        check_problem(live.client.get("/readyz"), 503)
        assert time.monotonic() - started < Admission.MAX_DELAY_CLOSING
        live.app.state.pipeline.batcher._draining = False


def test_no_answer_is_lost_or_exchanged_and_the_counters_add_up(serve_faulty, faulty, clients, encoded):
    faulty.delay = 0.02
    images = [encoded((40 + number, 30)) for number in range(40)]
    with serve_faulty(max_queue=8, max_batch=4) as live:

        def ask(number: int) -> tuple[int, int]:
            kind, width = number % 5, 40 + number % 40
            if kind == 0:
                response = live.client.post("/detect?unknown=1", content=images[0])
            elif kind == 1:
                response = live.client.post("/detect", content=b"no image")
            elif kind == 2:
                with socket.create_connection(address(live)) as connection, contextlib.suppress(OSError):
                    connection.sendall(head("/detect") + bytes(number))
                return number, 499
            else:
                response = live.client.post("/detect", content=images[width - 40])
                if response.status_code == 200:
                    assert response.json()["boxes"][0][2] == width
            return number, response.status_code

        statuses = [status for _, status in clients.map(ask, range(200))]
        wait_for(lambda: live.metric("frcnn_inflight") == 0)
        counted = {status: count for (route, status), count in requests_by_status(live).items() if route == "/detect"}
        assert sum(counted.values()) == 200
        # A client that leaves may be refused first.
        assert sum(counted.get(status, 0) for status in ("429", "499")) == sum(s in (429, 499) for s in statuses)
        for status in (200, 415, 422):
            assert counted.get(str(status), 0) == statuses.count(status)
        assert counted["200"] > 0
        assert json.loads(live.client.get("/readyz").content) == {"status": "ready"}


async def test_those_that_wait_pass_in_their_order_and_one_that_gives_up_takes_no_turn(monkeypatch):
    monkeypatch.setattr(Pacer, "BURST", 1)
    monkeypatch.setattr(Pacer, "RATE", 50.0)
    pacer, passed = Pacer(), []
    assert pacer.pass_at_once()
    assert not pacer.pass_at_once()
    turns = [pacer.turn(math.inf) for _ in range(4)]
    for number, turn in enumerate(turns):
        turn.add_done_callback(lambda _, number=number: passed.append(number))
    turns[1].cancel()
    await asyncio.wait(turns, timeout=20)
    assert passed == [1, 0, 2, 3]


async def test_at_the_end_all_pass(monkeypatch):
    monkeypatch.setattr(Pacer, "BURST", 0)
    monkeypatch.setattr(Pacer, "RATE", 0.001)
    pacer = Pacer()
    turns = [pacer.turn(math.inf) for _ in range(3)]
    turns[0].cancel()
    pacer.let_all_pass()
    assert [turn.cancelled() for turn in turns] == [True, False, False]
    assert all(turn.done() for turn in turns)


async def test_those_whose_deadline_is_near_pass_with_the_next_group(no_burst, monkeypatch):
    monkeypatch.setattr(Pacer, "TICK", 0.05)
    pacer = Pacer()
    patient, urgent = pacer.turn(math.inf), pacer.turn(time.monotonic() + 0.1)
    await asyncio.wait_for(urgent, timeout=20)
    assert not patient.done()
    patient.cancel()
