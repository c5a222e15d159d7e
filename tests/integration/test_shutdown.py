"""How a process of `frcnn serve` ends: real processes, real signals, and exit codes."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from shutil import which

import httpx
import pytest

# The server as the command line runs it, with a detector that is slow, fails permanently or hangs, or with a route that
# blocks the event loop.
PROGRAM = """
    import sys, threading, time
    import torch
    from service.app import create_app
    from service.server import uvicorn_server
    from service.server.logging import configure_logging
    from service.server.uvicorn_server import Server
    from service.settings import load_settings
    from tests.service.conftest import FaultyDetector

    class Device(FaultyDetector):
        state = "working"

        def detect(self, images, options):
            until = time.monotonic() + self.delay
            while self.state == "computing" and time.monotonic() < until:
                torch.ones(500, 500) @ torch.ones(500, 500)  # as a network does: in C++, without Python's lock
            if self.state == "hanging":
                threading.Event().wait()
            return super().detect(images, options)

    settings = load_settings(
        port=0, log_format="text", drain_seconds=float(sys.argv[2]), watchdog_seconds=float(sys.argv[4])
    )
    detector = Device()
    app = create_app(settings, detector_factory=lambda _: detector)

    async def block():
        print("blocked", flush=True)
        time.sleep(600)

    app.add_api_route("/block", block)
    uvicorn_server._FLUSH_SECONDS, uvicorn_server._MARGIN_SECONDS = 1, 0.5
    configure_logging(settings.log_format, settings.log_level)
    server = Server(app, settings)
    startup = server.startup

    async def announce(*args, **kwargs):
        await startup(*args, **kwargs)
        detector.delay, detector.broken, detector.state = float(sys.argv[1]), sys.argv[3] == "broken", sys.argv[3]
        print(server.servers[0].sockets[0].getsockname()[1], flush=True)

    server.startup = announce
    server.run_until_exit()
"""


@pytest.fixture
def serve(repo) -> Iterator[object]:
    started: list[subprocess.Popen[str]] = []

    def start(
        seconds: float = 1.0, grace: float = 20, state: str = "working", watchdog: float = 120
    ) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(seconds), str(grace), state, str(watchdog)],
            cwd=repo,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(repo)},
        )
        started.append(process)
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, process.stderr and process.stderr.read()
        return process, f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_exit(process: subprocess.Popen[str], seconds: float = 60) -> tuple[int, str]:
    _, log = process.communicate(timeout=seconds)
    return process.returncode, log


def post_image(url: str, body: bytes) -> httpx.Response:
    return httpx.post(f"{url}/detect", content=body, timeout=20)


def post_image_without_response(url: str, body: bytes) -> None:
    with pytest.raises(httpx.TransportError):
        post_image(url, body)


def wait_until_accepted(url: str, count: int) -> None:
    """Wait until ``count`` images have been accepted."""
    until = time.monotonic() + 10
    while f"frcnn_queue_depth {count}.0" not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_sigterm_drains_accepted_requests_and_refuses_new_ones(serve, encoded):
    process, url = serve(seconds=1.0)
    with ThreadPoolExecutor(6) as clients:
        responses = [clients.submit(post_image, url, encoded((40 + i * 20, 30))) for i in range(4)]
        wait_until_accepted(url, 4)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        late = post_image(url, encoded())
        assert late.status_code == 503
        assert int(late.headers["retry-after"]) >= 1
        assert httpx.get(f"{url}/readyz").status_code == 503
        assert httpx.get(f"{url}/livez").status_code == 200
        assert [response.result().status_code for response in responses] == [200] * 4
    code, log = wait_for_exit(process)
    assert code == 0, log
    assert "drained" in log


def test_sigterm_drains_all_images_of_a_request(serve, encoded):
    process, url = serve(seconds=0.5)
    with ThreadPoolExecutor(1) as clients:  # more images than are let into the queue at once
        responses = clients.submit(httpx.post, f"{url}/detect/batch", files=[("image", encoded())] * 20, timeout=20)
        wait_until_accepted(url, 8)
        process.send_signal(signal.SIGTERM)
        results = responses.result().json()["results"]
    assert ["boxes" in result for result in results] == [True] * 20
    assert wait_for_exit(process)[0] == 0


def test_an_idle_service_ends_at_once(serve):
    process, _ = serve(grace=600)  # which is not used up
    process.send_signal(signal.SIGTERM)
    assert wait_for_exit(process)[0] == 0


def test_a_second_sigterm_ends_the_process_and_logs_the_dropped_requests(serve, encoded):
    process, url = serve(seconds=600, grace=600)
    threading.Thread(target=post_image_without_response, args=(url, encoded())).start()
    wait_until_accepted(url, 1)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    code, log = wait_for_exit(process)
    assert code == 1
    assert "dropped=1" in log


def test_the_end_of_the_grace_period_ends_the_process(serve, encoded):
    process, url = serve(seconds=600, grace=0.5)
    threading.Thread(target=post_image_without_response, args=(url, encoded())).start()
    wait_until_accepted(url, 1)
    process.send_signal(signal.SIGTERM)
    code, log = wait_for_exit(process)
    assert code == 1
    assert "grace period is over" in log


def test_a_broken_detector_ends_the_process_with_3(serve, encoded):
    process, url = serve(seconds=0, state="broken")
    assert post_image(url, encoded()).status_code == 500
    code, log = wait_for_exit(process)
    assert code == 3
    assert "self-test" in log


def test_a_batch_without_waiting_clients_does_not_change_the_exit_code(serve, encoded):
    process, url = serve(seconds=1.0, state="computing")
    target, body = httpx.URL(url), encoded()
    with socket.create_connection((target.host, target.port)) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        wait_until_accepted(url, 1)
        until = time.monotonic() + 10
        while "frcnn_batch_size_count 1.0" not in httpx.get(f"{url}/metrics").text:  # it is on the device
            assert time.monotonic() < until
    wait_until_accepted(url, 0)
    process.send_signal(signal.SIGTERM)
    code, log = wait_for_exit(process)
    assert code == 0, log  # -6 would mean that Python ended a thread inside torch, where C++ aborts the process
    assert "drained" in log


def test_a_call_that_hangs_ends_the_process_with_3_after_503_to_all_clients(serve, encoded):
    process, url = serve(state="hanging", watchdog=1.5)
    with ThreadPoolExecutor(3) as clients:  # three canvases or batches: one on the device, the others behind it
        requests = [clients.submit(post_image, url, encoded((40 + i * 80, 30))) for i in range(3)]
        wait_until_accepted(url, 3)
        assert httpx.get(f"{url}/readyz").status_code == 200  # the watchdog's time is not over
        responses = [pending.result() for pending in requests]
    assert [response.status_code for response in responses] == [503] * 3
    assert all(int(response.headers["retry-after"]) >= 1 for response in responses)
    assert all(response.json()["code"] == "unavailable" for response in responses)
    code, log = wait_for_exit(process)
    assert code == 3, log
    assert "has not come back for 1.5 s" in log


def test_a_blocked_event_loop_does_not_outlive_the_grace_period(serve):
    process, url = serve(grace=0.5)
    target = httpx.URL(url)
    with socket.create_connection((target.host, target.port)) as connection:
        connection.sendall(b"GET /block HTTP/1.1\r\nHost: x\r\n\r\n")
        assert process.stdout.readline() == "blocked\n"
        process.send_signal(signal.SIGTERM)
        code, log = wait_for_exit(process)
    assert code == 1
    assert "the end takes too long" in log


@pytest.mark.slow
@pytest.mark.skipif(which("openssl") is None, reason="needs the openssl command, to make a certificate")
def test_the_command_serves_over_tls(repo, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout {key} -out {cert} -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    options = f"--port 0 --log-format text --tls-cert-file {cert} --tls-key-file {key}"
    program = [sys.executable, "-m", "service.cli", "serve", *options.split()]
    process = subprocess.Popen(program, cwd=repo, stderr=subprocess.PIPE, text=True)
    try:
        log = ""
        while "https://127.0.0.1:" not in log:  # uvicorn says where it listens
            line = process.stderr.readline()
            assert line, log
            log += line
        url = re.search(r"https://127\.0\.0\.1:\d+", log)[0]
        with httpx.Client(verify=ssl.create_default_context(cafile=str(cert)), timeout=30) as client:
            assert client.get(f"{url}/readyz").json() == {"status": "ready"}
            assert client.get(f"{url}/model").json()["name"] == "lite-voc20"
        with pytest.raises(httpx.ConnectError):  # its certificate is not trusted without the context
            httpx.get(f"{url}/readyz")
        process.send_signal(signal.SIGTERM)
        assert wait_for_exit(process)[0] == 0
    finally:
        process.kill()
        process.communicate()
