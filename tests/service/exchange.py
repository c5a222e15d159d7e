"""Send requests at once, hold the device busy, and check problems."""

import time
from concurrent.futures import Future

import httpx


def send(clients, live, body: bytes, *, path: str = "/detect", **headers: str) -> "Future[httpx.Response]":
    """Send an image from a client of its own, without waiting."""
    return clients.submit(httpx.post, f"{live.url}{path}", content=body, headers=headers, timeout=30)


def wait_for(condition, seconds: float = 10) -> None:
    """Wait until ``condition()`` is true; fail after ``seconds``."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not become true in time"
        time.sleep(0.005)


def waiting(live) -> int:
    """Return the number of images that hold a slot."""
    return live.app.state.pipeline.batcher.slots_in_use


def queued(live) -> int:
    """Return the number of images in the queue."""
    return len(live.app.state.pipeline.batcher.queue)


def hold(clients, live, faulty, body: bytes) -> "Future[httpx.Response]":
    """Keep the device busy with one image until ``faulty.gate`` is set."""
    calls = len(faulty.batches)
    faulty.gate.clear()
    first = send(clients, live, body)
    wait_for(lambda: len(faulty.batches) > calls)
    return first


def check_problem(response: httpx.Response, status: int, *phrases: str) -> dict:
    """Check that ``response`` is a problem of that status whose message has ``phrases``; return the problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["detail"].endswith(".")
    for phrase in phrases:
        assert phrase in problem["detail"]
    for leak in ("Traceback", "site-packages", "0x7"):
        assert leak not in response.text
    return problem


def address(live) -> tuple[str, int]:
    url = httpx.URL(live.url)
    return url.host, url.port
