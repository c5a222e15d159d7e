"""Send requests at once, hold the device busy, and check problems."""

import time
from concurrent.futures import Future

import httpx


def send(clients, live, body: bytes, **headers: str) -> "Future[httpx.Response]":
    """Send an image from a client of its own, without waiting."""
    return clients.submit(httpx.post, f"{live.url}/detect", content=body, headers=headers, timeout=30)


def wait_for(condition, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to pass"
        time.sleep(0.005)


def waiting(live) -> int:
    return live.app.state.pipeline.batcher.waiting


def queued(live) -> int:
    return len(live.app.state.pipeline.batcher.queue)


def hold(clients, live, faulty, body: bytes) -> "Future[httpx.Response]":
    """Keep the device busy with one image until ``faulty.gate`` is set."""
    calls = len(faulty.batches)
    faulty.gate.clear()
    first = send(clients, live, body)
    wait_for(lambda: len(faulty.batches) > calls)
    return first


def refused(answer: httpx.Response, status: int, *words: str) -> dict:
    """``answer`` is a problem of that status whose sentence has ``words``."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["detail"].endswith(".")
    for word in words:
        assert word in problem["detail"]
    for leak in ("Traceback", "site-packages", "0x7"):
        assert leak not in answer.text
    return problem


def address(live) -> tuple[str, int]:
    url = httpx.URL(live.url)
    return url.host, url.port
