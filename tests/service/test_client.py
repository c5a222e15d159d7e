"""The client: what it does with every kind of answer, on an httpx transport of our own and on the live service."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from service import client as client_module
from service.cli.main import app
from service.cli.remote import expand, finished
from service.client import AsyncClient, Client, DetectError, Found

ANSWER = {
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
run = CliRunner().invoke


def problem(status: int, **headers: str) -> httpx.Response:
    body = {"detail": f"sentence for {status}", "code": f"code_{status}", "request_id": "r"}
    return httpx.Response(status, json=body, headers=headers)


class Script:
    """A server that answers what it is told to, one after the other, and keeps what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of this thread's clients, which pass at once; a server of another test, in its thread, sleeps on."""
    taken: list[float] = []
    ours, sleep, sleep_async = threading.get_ident(), time.sleep, asyncio.sleep

    def rest(seconds: float) -> None:
        if threading.get_ident() == ours:
            taken.append(seconds)
        else:
            sleep(seconds)

    async def nap(seconds: float) -> None:
        if threading.get_ident() == ours:
            taken.append(seconds)
        else:
            await sleep_async(seconds)

    monkeypatch.setattr(client_module.time, "sleep", rest)
    monkeypatch.setattr(client_module.asyncio, "sleep", nap)
    return taken


def detect(script: Script, **kwargs: object) -> Found:
    with Client("http://service", transport=httpx.MockTransport(script), **kwargs) as client:  # type: ignore[arg-type]
        return client.detect(b"picture", score_threshold=0.5, classes=["cat", "dog"])


async def detect_async(script: Script, **kwargs: object) -> Found:
    transport = httpx.MockTransport(script)
    async with AsyncClient("http://service", transport=transport, **kwargs) as client:  # type: ignore[arg-type]
        return await client.detect(b"picture", score_threshold=0.5, classes=["cat", "dog"])


both = pytest.mark.parametrize(
    "ask", [detect, lambda *a, **k: asyncio.run(detect_async(*a, **k))], ids=["sync", "async"]
)


@both
def test_options_key_and_deadline_go_with_the_picture_and_types_come_back(ask: Callable[..., Found]) -> None:
    script = Script(httpx.Response(200, json=ANSWER))
    found = ask(script, api_key="secret", timeout=9.0)
    [request] = script.asked
    assert request.content == b"picture"
    assert request.url.params.get_list("classes") == ["cat", "dog"]
    assert request.url.params["score_threshold"] == "0.5"
    assert request.headers["authorization"] == "Bearer secret"
    assert 8000 < int(request.headers["x-request-timeout-ms"]) <= 9000
    assert found.boxes == ((0.0, 0.0, 4.0, 3.0),)
    assert (found.labels, found.class_ids, found.scores, len(found)) == (("cat",), (1,), (0.9,), 1)


@both
def test_it_waits_as_long_as_retry_after_says_and_not_much_longer(ask: Callable[..., Found], naps: list[float]) -> None:
    script = Script(problem(429, **{"Retry-After": "3"}), problem(503), httpx.Response(200, json=ANSWER))
    assert ask(script).tries == 3
    assert 3 <= naps[0] <= 3.75
    assert 1 <= naps[1] <= 1.25


@both
def test_a_lost_connection_is_tried_again_at_growing_intervals(ask: Callable[..., Found], naps: list[float]) -> None:
    lost = [httpx.ConnectError("refused"), httpx.ReadError(""), httpx.RemoteProtocolError("cut")]
    assert ask(Script(*lost, httpx.Response(200, json=ANSWER))).tries == 4
    assert naps == sorted(naps)


@both
@pytest.mark.parametrize("status", [400, 401, 413, 415, 422, 500, 504])
def test_what_would_fail_again_is_raised_at_once_with_the_services_words(
    ask: Callable[..., Found], naps: list[float], status: int
) -> None:
    script = Script(problem(status))
    with pytest.raises(DetectError, match=f"sentence for {status}") as caught:
        ask(script)
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, f"code_{status}", "r")
    assert len(script.asked) == 1
    assert not naps


@both
def test_a_wait_beyond_the_deadline_is_not_begun(ask: Callable[..., Found], naps: list[float]) -> None:
    with pytest.raises(DetectError, match="sentence for 429"):
        ask(Script(problem(429, **{"Retry-After": "60"})), timeout=5.0)
    assert not naps


@both
def test_the_number_of_tries_is_bounded(ask: Callable[..., Found], naps: list[float]) -> None:
    with pytest.raises(DetectError, match="could not be reached"):
        ask(Script(*[httpx.ConnectError("refused")] * 3), tries=3)
    assert len(naps) == 2


def test_a_stranger_that_answers_for_the_service_is_reported_as_such(naps: list[float]) -> None:
    with pytest.raises(DetectError, match="Something answered 502"):
        detect(Script(httpx.Response(502, text="<html>")))


def test_a_url_without_a_scheme_is_not_tried_twice(naps: list[float]) -> None:
    with Client("localhost:8000") as client, pytest.raises(DetectError):
        client.detect(b"picture")
    assert not naps


async def test_many_keeps_to_its_number_at_once_and_goes_on_after_failures(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for path in paths[:-1]:
        path.write_bytes(path.name.encode())
    now = most = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return problem(400) if request.content == b"3.png" else httpx.Response(200, json=ANSWER)

    async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as client:
        outcomes = {path: outcome async for path, outcome in client.detect_many(paths, at_once=3)}
    assert set(outcomes) == set(paths)
    assert isinstance(outcomes[paths[3]], DetectError)
    assert isinstance(outcomes[paths[8]], FileNotFoundError)
    assert sum(isinstance(outcome, Found) for outcome in outcomes.values()) == 7
    assert most == 3


def test_a_full_queue_is_waited_for_and_everybody_is_answered(serve_faulty, faulty, encoded) -> None:
    faulty.delay = 0.05
    with serve_faulty(max_queue=2, max_batch=1) as live:

        async def all_of_them() -> list[Found]:
            async with AsyncClient(live.url, tries=50) as client:
                return await asyncio.gather(*(client.detect(encoded((20 + i, 20))) for i in range(8)))

        found = asyncio.run(all_of_them())
        assert [one.width for one in found] == [20 + i for i in range(8)]
        assert max(one.tries for one in found) > 1
        assert live.metric("frcnn_rejected_total", reason="queue_full") > 0


def test_one_connection_serves_many_pictures(serve_faulty, encoded) -> None:
    with serve_faulty() as live, Client(live.url) as client:
        for _ in range(3):
            client.detect(encoded())
        [connection] = client._http._transport._pool.connections  # type: ignore[attr-defined]
        assert connection.is_available()


@pytest.fixture
def folder(tmp_path: Path, encoded: Callable[..., bytes]) -> Path:
    path = tmp_path / "pictures"
    (path / "deeper").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.PNG", "deeper/c.png"]):
        (path / name).write_bytes(encoded((30 + i, 20)))
    (path / "notes.txt").write_text("not a picture")
    return path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_folder_becomes_lines_and_a_second_run_goes_on_where_the_first_was_cut_off(
    serve_faulty, faulty, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found.jsonl"
    with serve_faulty() as live:
        command = ["detect", str(folder), "--url", live.url, "--out", str(out)]
        done = run(app, command)
        assert done.exit_code == 0, done.output
        assert len(lines(out)) == 3
        assert finished(out) == {str(path) for path in expand([folder])}
        written = out.read_bytes()
        out.write_bytes(written[: -len(written) // 3 - 5])  # the power failed in the middle of a line
        asked = sum(map(len, faulty.batches))  # pictures, however they were batched
        assert run(app, command).exit_code == 0
        assert sorted(lines(out)) == sorted(written.decode().splitlines())
        assert sum(map(len, faulty.batches)) - asked == 3 - written[: -len(written) // 3 - 5].count(b"\n")


def test_a_picture_that_fails_is_named_has_no_line_and_is_tried_again(
    serve_faulty, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found.jsonl"
    (folder / "broken.png").write_bytes((folder / "b.png").read_bytes()[:40])
    with serve_faulty() as live:
        command = ["detect", str(folder), "--url", live.url, "--out", str(out)]
        for _ in range(2):
            done = run(app, command)
            assert done.exit_code == 1
            assert "broken.png: " in done.stderr
        assert len(lines(out)) == 3


def test_a_wrong_key_stops_the_folder_at_its_first_picture(serve_faulty, folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right-key-of-this-service\n")
    with serve_faulty(api_keys_file=keys) as live:
        done = run(app, ["detect", str(folder), "--url", live.url, "--api-key", "wrong", "--at-once", "1"])
        assert done.exit_code == 1
        assert live.metric("frcnn_rejected_total", reason="unauthorized") <= 2
        done = run(app, ["detect", str(folder), "--url", live.url, "--api-key", "right-key-of-this-service"])
        assert done.exit_code == 0, done.stderr


def test_a_file_that_holds_something_else_is_not_written_to(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "precious.txt"
    out.write_text("precious\n")
    done = run(app, ["detect", str(folder), "--url", "http://127.0.0.1:9", "--out", str(out)])
    assert done.exit_code == 1
    assert "something else" in done.stderr
    assert out.read_text() == "precious\n"


def test_the_clients_own_patience_needs_no_torch(repo: Path) -> None:
    code = "import sys, service.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repo, check=False).returncode == 0
