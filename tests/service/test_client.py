"""The client: how it handles each kind of response, on a scripted transport and on a running service."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service import client as client_module
from service.client import AsyncClient, Client, DetectError, DetectionResult

DETECTIONS = {
    "request_id": "r",
    "model": "m",
    "image": {"width": 4, "height": 3},
    "boxes": [[0.0, 0.0, 4.0, 3.0]],
    "scores": [0.9],
    "labels": ["cat"],
    "class_ids": [1],
    "batch_size": 1,
    "timings_ms": {"total": 1.0},
}


def problem(status: int, **headers: str) -> httpx.Response:
    body = {"detail": f"sentence for {status}", "code": f"code_{status}", "request_id": "r"}
    return httpx.Response(status, json=body, headers=headers)


class Script:
    """A transport that returns or raises ``outcomes`` in turn, and records the requests."""

    def __init__(self, *outcomes: httpx.Response | Exception) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the delays of this thread's clients, which then do not sleep; servers in other threads still do."""
    delays: list[float] = []
    this_thread, sleep, sleep_async = threading.get_ident(), time.sleep, asyncio.sleep

    def record(seconds: float) -> None:
        if threading.get_ident() == this_thread:
            delays.append(seconds)
        else:
            sleep(seconds)

    async def record_async(seconds: float) -> None:
        if threading.get_ident() == this_thread:
            delays.append(seconds)
        else:
            await sleep_async(seconds)

    monkeypatch.setattr(client_module.time, "sleep", record)
    monkeypatch.setattr(client_module.asyncio, "sleep", record_async)
    return delays


def detect(script: Script, **kwargs: object) -> DetectionResult:
    with Client("http://service", transport=httpx.MockTransport(script), **kwargs) as client:  # type: ignore[arg-type]
        return client.detect(b"image", score_threshold=0.5, classes=["cat", "dog"])


async def detect_async(script: Script, **kwargs: object) -> DetectionResult:
    transport = httpx.MockTransport(script)
    async with AsyncClient("http://service", transport=transport, **kwargs) as client:  # type: ignore[arg-type]
        return await client.detect(b"image", score_threshold=0.5, classes=["cat", "dog"])


both = pytest.mark.parametrize(
    "ask", [detect, lambda *a, **k: asyncio.run(detect_async(*a, **k))], ids=["sync", "async"]
)


@both
def test_a_request_has_options_key_and_deadline_and_the_result_has_types(ask: Callable[..., DetectionResult]) -> None:
    script = Script(httpx.Response(200, json=DETECTIONS))
    result = ask(script, api_key="secret", timeout=9.0)
    [request] = script.requests
    assert request.content == b"image"
    assert request.url.params.get_list("classes") == ["cat", "dog"]
    assert request.url.params["score_threshold"] == "0.5"
    assert request.headers["authorization"] == "Bearer secret"
    assert 8000 < int(request.headers["x-request-timeout-ms"]) <= 9000
    assert result.boxes == ((0.0, 0.0, 4.0, 3.0),)
    assert (result.labels, result.class_ids, result.scores, len(result)) == (("cat",), (1,), (0.9,), 1)


@both
def test_a_retry_waits_as_long_as_retry_after_says(ask: Callable[..., DetectionResult], delays: list[float]) -> None:
    script = Script(problem(429, **{"Retry-After": "3"}), problem(503), httpx.Response(200, json=DETECTIONS))
    assert ask(script).tries == 3
    assert 3 <= delays[0] <= 3.75
    assert 1 <= delays[1] <= 1.25


@both
def test_a_lost_connection_is_tried_again_at_growing_intervals(
    ask: Callable[..., DetectionResult], delays: list[float]
) -> None:
    errors = [httpx.ConnectError("refused"), httpx.ReadError(""), httpx.RemoteProtocolError("cut")]
    assert ask(Script(*errors, httpx.Response(200, json=DETECTIONS))).tries == 4
    assert delays == sorted(delays)


@both
@pytest.mark.parametrize("status", [400, 401, 413, 415, 422, 500, 504])
def test_permanent_errors_are_raised_at_once_with_the_services_message(
    ask: Callable[..., DetectionResult], delays: list[float], status: int
) -> None:
    script = Script(problem(status))
    with pytest.raises(DetectError, match=f"sentence for {status}") as error:
        ask(script)
    assert (error.value.status, error.value.code, error.value.request_id) == (status, f"code_{status}", "r")
    assert len(script.requests) == 1
    assert not delays


@both
def test_a_wait_beyond_the_deadline_raises_at_once(ask: Callable[..., DetectionResult], delays: list[float]) -> None:
    with pytest.raises(DetectError, match="sentence for 429"):
        ask(Script(problem(429, **{"Retry-After": "60"})), timeout=5.0)
    assert not delays


@both
def test_the_number_of_tries_is_bounded(ask: Callable[..., DetectionResult], delays: list[float]) -> None:
    with pytest.raises(DetectError, match="could not be reached"):
        ask(Script(*[httpx.ConnectError("refused")] * 3), tries=3)
    assert len(delays) == 2


def test_a_response_from_another_server_is_reported_as_such(delays: list[float]) -> None:
    with pytest.raises(DetectError, match="Something answered 502"):
        detect(Script(httpx.Response(502, text="<html>")))


def test_a_url_without_a_scheme_is_not_tried_twice(delays: list[float]) -> None:
    with Client("localhost:8000") as client, pytest.raises(DetectError):
        client.detect(b"image")
    assert not delays


async def test_detect_many_limits_its_requests_and_continues_after_failures(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for path in paths[:-1]:
        path.write_bytes(path.name.encode())
    running = peak = 0

    async def response(request: httpx.Request) -> httpx.Response:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.01)
        running -= 1
        return problem(400) if request.content == b"3.png" else httpx.Response(200, json=DETECTIONS)

    async with AsyncClient("http://service", transport=httpx.MockTransport(response)) as client:
        outcomes = {path: outcome async for path, outcome in client.detect_many(paths, at_once=3)}
    assert set(outcomes) == set(paths)
    assert isinstance(outcomes[paths[3]], DetectError)
    assert isinstance(outcomes[paths[8]], FileNotFoundError)
    assert sum(isinstance(outcome, DetectionResult) for outcome in outcomes.values()) == 7
    assert peak == 3


def test_requests_to_a_full_queue_are_retried_until_all_succeed(serve_faulty, faulty, encoded) -> None:
    faulty.delay = 0.05
    with serve_faulty(max_queue=2, max_batch=1) as live:

        async def detect_all() -> list[DetectionResult]:
            async with AsyncClient(live.url, tries=50) as client:
                return await asyncio.gather(*(client.detect(encoded((20 + i, 20))) for i in range(8)))

        results = asyncio.run(detect_all())
        assert [result.width for result in results] == [20 + i for i in range(8)]
        assert max(result.tries for result in results) > 1
        assert live.metric("frcnn_rejected_total", reason="queue_full") > 0


def test_one_connection_serves_many_images(serve_faulty, encoded) -> None:
    with serve_faulty() as live, Client(live.url) as client:
        for _ in range(3):
            client.detect(encoded())
        [connection] = client._http._transport._pool.connections  # type: ignore[attr-defined]
        assert connection.is_available()


def test_the_client_needs_no_torch(repo: Path) -> None:
    code = "import sys, service.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, check=False).returncode == 0
