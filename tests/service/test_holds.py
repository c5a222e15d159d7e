"""What goes wrong with the device, the body or a caller's manners, made to go wrong."""

import contextlib
import dataclasses
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from shutil import which

import httpx
import numpy as np
import pytest
import torch

from model.detector import Detector
from service.app import create_app
from service.errors import QueueFull
from service.inference.budget import Budget
from service.inference.self_test import TOLERANCES, Canary, CanaryError, Sight, picture, stored_sight
from service.server.http_protocol import LimitedHttpProtocol
from service.server.uvicorn_server import Server
from service.settings import load_settings
from tests.service.test_queue import clients, hold, queued, send, wait_for  # noqa: F401


@pytest.fixture
def small(encoded):
    return encoded((40, 30))


def address(live) -> tuple[str, int]:
    url = httpx.URL(live.url)
    return url.host, url.port


def test_a_call_that_hangs_is_given_up_and_all_that_wait_are_503(serve_faulty, faulty, clients, encoded, small):  # noqa: F811
    with serve_faulty(watchdog_seconds=0.3) as live:
        died = threading.Event()
        live.app.state.pipeline.batcher.on_death = died.set
        hanging = hold(clients, live, faulty, small)
        behind = send(clients, live, encoded((120, 30)))
        assert [hanging.result().status_code, behind.result().status_code] == [503, 503]
        assert died.wait(5)
        assert live.client.get("/readyz").status_code == 503
        assert live.client.get("/livez").status_code == 200
        assert live.metric("frcnn_ready") == 0
        faulty.gate.set()  # it comes back after all: too late
        assert live.detect(small).status_code == 503


@pytest.mark.parametrize("death", [SystemExit, KeyboardInterrupt])
def test_the_death_of_the_workers_thread_is_noticed(serve_faulty, faulty, clients, monkeypatch, small, death):  # noqa: F811
    with serve_faulty() as live:
        died = threading.Event()
        live.app.state.pipeline.batcher.on_death = died.set
        monkeypatch.setattr(faulty, "detect", lambda *_: (_ for _ in ()).throw(death()))
        assert live.detect(small).status_code == 503
        assert died.wait(5)
        assert live.client.get("/readyz").status_code == 503


def test_answers_too_few_are_a_failure_of_the_batch_and_not_a_silent_queue(serve_faulty, faulty, monkeypatch, small):
    with serve_faulty() as live:
        answer = faulty.detect
        monkeypatch.setattr(faulty, "detect", lambda images, options: answer(images, options)[1:])
        assert live.detect(small).status_code == 500  # and its canary fails too
        wait_for(lambda: live.client.get("/readyz").status_code == 503)


def test_a_request_that_could_not_be_answered_in_time_is_429_and_not_a_late_504(
    serve_faulty,
    faulty,
    clients,  # noqa: F811
    small,
):
    with serve_faulty() as live:
        faulty.delay = 0.3
        assert live.detect(small).status_code == 200  # the pace is known now
        first = hold(clients, live, faulty, small)
        refusal = live.detect(small, headers={"X-Request-Timeout-Ms": "200"})
        assert refusal.status_code == 429
        assert "deadline" in refusal.json()["detail"]
        patient = send(clients, live, small)
        wait_for(lambda: queued(live) == 1)
        faulty.gate.set()
        assert [first.result().status_code, patient.result().status_code] == [200, 200]
        assert live.detect(small, headers={"X-Request-Timeout-Ms": "900"}).status_code == 200


def test_a_slow_body_has_a_time_limit_of_its_own(serve_faulty, small):
    with serve_faulty(body_seconds=0.3) as live:
        connection = http.client.HTTPConnection(*address(live), timeout=10)
        connection.putrequest("POST", "/detect")
        connection.putheader("Content-Length", str(len(small)))
        connection.endheaders(small[:10])
        answer = connection.getresponse()
        assert answer.status == 408
        assert b"slow_body" in answer.read()
        connection.close()
        assert live.app.state.pipeline.bodies.held == 0
        assert live.detect(small).status_code == 200


def test_bodies_in_flight_are_bounded_in_sum_and_given_back(serve_faulty, small):
    with serve_faulty(max_bodies_bytes=4096) as live:
        with socket.create_connection(address(live)) as holder:
            holder.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + bytes(4090))
            wait_for(lambda: live.app.state.pipeline.bodies.held == 4090)
            refusal = live.detect(small)
            assert refusal.status_code == 429
            assert int(refusal.headers["retry-after"]) >= 1
        wait_for(lambda: live.app.state.pipeline.bodies.held == 0)
        assert live.detect(small).status_code == 200


def test_the_only_body_may_be_larger_than_the_sum_of_all():
    budget = Budget(100, lambda: 1)
    with budget.tab() as take:
        take(60)
        take(60)
        with budget.tab() as other, pytest.raises(QueueFull):
            other(1)
    assert budget.held == 0


def test_requests_of_one_key_are_bounded_and_others_are_not_hurt(
    serve_faulty,
    faulty,
    clients,  # noqa: F811
    tmp_path,
    small,
):
    (tmp_path / "keys").write_text("greedy\nmodest\n")
    with serve_faulty(api_keys_file=tmp_path / "keys", max_inflight_per_key=2) as live:
        faulty.gate.clear()
        held = [send(clients, live, small, **{"X-API-Key": "greedy"}) for _ in range(2)]
        wait_for(lambda: live.app.state.pipeline.batcher.waiting == 2)
        refusal = live.detect(small, headers={"X-API-Key": "greedy"})
        assert (refusal.status_code, refusal.json()["code"]) == (429, "key_busy")
        other = send(clients, live, small, **{"X-API-Key": "modest"})
        wait_for(lambda: live.app.state.pipeline.batcher.waiting == 3)
        faulty.gate.set()
        assert [answer.result().status_code for answer in (*held, other)] == [200] * 3
        assert live.detect(small, headers={"X-API-Key": "greedy"}).status_code == 200


def test_a_key_file_that_is_no_text_any_more_shuts_out_and_breaks_nothing(serve_faulty, tmp_path, small):
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    with serve_faulty(api_keys_file=keys) as live:
        live.app.state.pipeline.keys.LOOK_EVERY = 0
        keys.write_bytes(b"\xff\xfe\x00broken")
        assert live.detect(small, headers={"X-API-Key": "first"}).status_code == 401


# ----------------------------------------------------------------------------------------------------- the canary
@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random("LITE", seed=0)


def test_the_canary_passes_a_sound_detector_and_not_one_whose_weights_have_moved(detector):
    canary = Canary.prepare(detector)
    canary.check(detector)
    with pytest.raises(CanaryError, match="not found again"):
        canary.check(Detector.random("LITE", seed=1))


BOX, NEIGHBOUR, ELSEWHERE = [0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 100.0, 80.0], [0.0, 0.0, 100.0, 40.0]


@pytest.mark.parametrize(
    ("seen", "sound"),
    [
        ([(BOX, 0.72)], True),
        ([(NEIGHBOUR, 0.9), (BOX, 0.1)], True),
        ([(NEIGHBOUR, 0.3)], False),
        ([(ELSEWHERE, 0.9)], False),
    ],
    ids=["there", "gave way to a better neighbour", "its neighbour is worse", "nothing is near"],
)
def test_a_proposal_may_give_way_to_a_neighbour_and_not_vanish(seen, sound, monkeypatch):
    boxes, objectness = [box for box, _ in seen], [score for _, score in seen]
    monkeypatch.setattr("service.inference.self_test.look", lambda *_: Sight([], [], [], objectness, boxes))
    canary = Canary(picture(), Sight([], [], [], [0.7], [BOX]), TOLERANCES["bf16"])
    if sound:
        canary.check(None)
    else:
        with pytest.raises(CanaryError, match=r"the proposal at .* is not found again"):
            canary.check(None)


def test_not_all_proposals_may_give_way(monkeypatch):
    monkeypatch.setattr("service.inference.self_test.look", lambda *_: Sight([], [], [], [0.9], [NEIGHBOUR]))
    for flips, sound in ((5, True), (6, False)):
        canary = Canary(picture(), Sight([], [], [], [0.7] * flips, [BOX] * flips), TOLERANCES["bf16"])
        with contextlib.nullcontext() if sound else pytest.raises(CanaryError):
            canary.check(None)


def test_the_canary_does_not_pass_numbers_that_are_none(detector, monkeypatch):
    canary = Canary.prepare(detector)
    whole = detector.detect

    def broken(images, options):
        [found] = whole(images, options)
        return [dataclasses.replace(found, scores=torch.full_like(found.scores, float("nan")))]

    monkeypatch.setattr(detector, "detect", broken)
    with pytest.raises(CanaryError, match="not finite"):
        canary.check(detector)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_bundled_weights_give_their_stored_answer(precision):
    """Where this fails after a training: `python -m service.inference.self_test lite-voc20`."""
    detector = Detector.from_checkpoint("lite-voc20", precision=precision)
    assert stored_sight(detector.info.sha256) is not None
    Canary.prepare(detector).check(detector)
    assert picture().shape == (213, 320, 3)
    assert picture().dtype == np.uint8


# ------------------------------------------------------------------------------------- the server around the app
@contextlib.contextmanager
def served(app, settings):
    server = Server(app, settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, 30)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def doors(faulty, monkeypatch):
    monkeypatch.setattr(LimitedHttpProtocol, "HEAD_SECONDS", 0.5)
    settings = load_settings(port=0)
    with served(create_app(settings, detector_factory=lambda _: faulty), settings) as port:
        yield port


@pytest.mark.parametrize("head", [b"", b"POST /detect HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_that_never_ends_is_cut_off(doors, head):
    with socket.create_connection(("127.0.0.1", doors), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(100) == b""


def test_a_head_without_bounds_is_cut_off(doors):
    with socket.create_connection(("127.0.0.1", doors), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
        endless = b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(10_000))
        with pytest.raises(OSError, match=r"reset|pipe"):  # cut off while there is more to read
            connection.sendall(endless)


@pytest.mark.parametrize(
    ("request_bytes", "why"),
    [
        (b"nonsense\r\n\r\n", "not HTTP"),
        (b"POST /detect?regions=" + b"1" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "too long"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: " + b"1" * 500_000, "64 KiB"),
        (b"POST /detect HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", "not HTTP"),
    ],
    ids=["no HTTP", "long address", "long head", "broken chunk"],
)
def test_a_request_that_cannot_be_read_is_a_problem_of_400(doors, request_bytes, why):
    with socket.create_connection(("127.0.0.1", doors), timeout=10) as connection:
        connection.sendall(request_bytes)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        problem = json.loads(answer.read())
        assert (answer.status, problem["status"], problem["code"]) == (400, 400, "bad_request")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["X-Request-ID"] == problem["request_id"]
        assert why in problem["detail"]
        assert connection.recv(100) == b"", "the connection ends"


def test_nonsense_behind_a_request_does_not_take_its_answer(doors, faulty, small):
    faulty.delay = 0.5
    head = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(small)
    with socket.create_connection(("127.0.0.1", doors), timeout=10) as connection:
        connection.sendall(head + small)
        time.sleep(0.2)
        connection.sendall(b"nonsense\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        assert len(json.loads(answer.read())["boxes"]) == 1
        assert connection.recv(100) == b"", "the connection ends"


def test_a_slow_answer_on_a_connection_kept_open_is_not_cut_off(doors, faulty, small):
    faulty.delay = 0.7
    with httpx.Client(base_url=f"http://127.0.0.1:{doors}") as client:
        for _ in range(2):
            assert client.post("/detect", content=small).status_code == 200


def test_a_connection_is_kept_longer_than_clients_keep_it(faulty):
    # Or their next request and our closing cross on the way: httpx waits 5 s, nginx 60.
    settings = load_settings(port=0)
    assert Server(create_app(settings, detector_factory=lambda _: faulty), settings).config.timeout_keep_alive > 60


@pytest.mark.skipif(which("openssl") is None, reason="needs the openssl command, to make a certificate")
def test_it_speaks_tls_where_a_certificate_is_set(faulty, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout {key} -out {cert} -subj /CN=localhost"
    subprocess.run([*make.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    settings = load_settings(port=0, tls_cert_file=cert, tls_key_file=key)
    with served(create_app(settings, detector_factory=lambda _: faulty), settings) as port:
        trusted = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=trusted) as client:
            assert client.get(f"https://127.0.0.1:{port}/readyz").status_code == 200
