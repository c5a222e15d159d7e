"""The service on a real Ray: the same behaviour through its proxy, and no lost request when a replica or node dies.

Ray runs in processes of its own, as its users start it, and ends with the test.
"""

import concurrent.futures
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

TIMEOUT = 500  # seconds for a Ray that shares a small machine; only a hang reaches it
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'frcnn-service[ray]'"),
]


def processes_of_ray(folder: Path) -> list[str]:
    """Return the command lines of the processes of Ray that have their files in ``folder``."""
    command_lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"RAY_TMPDIR={folder}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    command_lines.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return command_lines


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Make a folder for Ray's files, with a short path: the paths of its sockets must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_frcnn_serve_ray_behaves_as_frcnn_serve_and_drains(ray_folder: Path, repo: Path, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    settings = {
        "RAY_TMPDIR": str(ray_folder),
        "FRCNN_DEVICE": "cpu",
        "FRCNN_TORCH_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "service.cli", "serve", "--ray"]
    options = ["--port", str(unused_tcp_port), "--max-body-bytes", "300000", "--log-level", "warning"]
    with (ray_folder / "log").open("w") as log, httpx.Client(base_url=url, timeout=TIMEOUT) as client:
        process = subprocess.Popen(
            [*command, *options], env=os.environ | settings, cwd=repo, stdout=log, stderr=subprocess.STDOUT
        )
        try:

            def ready() -> bool:
                assert process.poll() is None, (ray_folder / "log").read_text()
                try:
                    return client.get("/readyz", timeout=5).status_code == 200
                except httpx.TransportError:
                    return False

            assert wait_until(ready, TIMEOUT), (ray_folder / "log").read_text()
            image = (repo / "service/inference/self_test.jpg").read_bytes()
            response = client.post("/detect", content=image, headers={"X-Request-ID": "client-id"})
            assert response.json()["labels"] == ["cat"]
            assert response.headers.get_list("x-request-id") == ["client-id"]
            for path, body, status in (
                ("/detect", b"x" * 400_000, 413),
                ("/detect", b"x" * 4_000_000, 413),
                ("/detect", b"no image", 415),
                ("/detect?score_threshold=2", image, 422),
                ("/nothing", b"", 404),
            ):
                error_response = client.post(path, content=body)
                assert error_response.status_code == status, error_response.text
                assert error_response.headers["content-type"] == "application/problem+json"
                assert error_response.json()["request_id"] == error_response.headers["x-request-id"]
            assert 'frcnn_requests_total{route="/detect",status="200"}' in client.get("/metrics").text
            assert client.get("/docs").status_code == 200

            with concurrent.futures.ThreadPoolExecutor(12) as threads:
                responses = [threads.submit(client.post, "/detect", content=image) for _ in range(12)]
                assert wait_until(
                    lambda: "frcnn_queue_depth 12.0" in client.get("/metrics").text or responses[0].done()
                )
                process.send_signal(signal.SIGTERM)
                assert [response.result().status_code for response in responses] == [200] * 12
            assert process.wait(TIMEOUT) == 0, (ray_folder / "log").read_text()
        finally:
            if process.poll() is None:
                process.kill()
    assert wait_until(lambda: not processes_of_ray(ray_folder)), processes_of_ray(ray_folder)


def test_no_request_is_lost_when_a_replica_and_then_a_node_is_killed(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "ledger.json"
    command = [sys.executable, "-m", "benchmarks.serving.ray_failover", "--clients", "3", "--answers", "10"]
    files_before = set(Path("/tmp").glob("ledger*"))
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=repo, capture_output=True, text=True, check=False, timeout=2 * TIMEOUT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads(out.read_text())
    assert ledger["lost"] == []
    assert ledger["wrong"] == 0
    assert ledger["answered"] == ledger["sent"] >= 5 * 10
    assert [phase["answered"] >= 10 for phase in ledger["phases"]] == [True] * 5
    assert ledger["phases"][2]["replicas"] == ledger["phases"][4]["replicas"] == 2
    assert ledger["left_running"] == []
    assert set(Path("/tmp").glob("ledger*")) == files_before
