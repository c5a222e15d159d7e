"""On Ray: the same contract from the front of its proxy, and nothing lost when a replica or a node dies.

Ray runs in processes of its own, started as its users start it, and is gone when a test is over.
"""

import concurrent.futures
import contextlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from service.inference.worker import Worker
from service.metrics import Metrics
from service.server.ray_proxy import Front, environment
from service.settings import Settings, SettingsError

NO_RAY = "needs Ray: pip install 'frcnn-service[ray]'"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason=NO_RAY)
PATIENCE = 500  # seconds for a Ray that shares a small machine; only a hang reaches it
LIMIT = 10_000
# Ray's own, when it is imported.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field` is deprecated:pydantic.warnings.PydanticDeprecatedSince20"
)


# ------------------------------------------------------------------------------------------- the front, without Ray


def in_front_of(ray: ASGIApp, most_bytes: int = 10**9) -> httpx.AsyncClient:
    """A client of ``Front``, with ``ray`` in the place of Ray's proxy."""
    front = Front(ray, Settings(max_body_bytes=LIMIT, timeout_ms=3000), most_bytes)
    return httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://front")


def saying(status: int, text: str, **headers: str) -> ASGIApp:
    """Ray's proxy, when it answers by itself: plain text, and its own request id."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        named = {"content-type": "text/plain", "x-request-id": "rays", **headers}
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


async def dying(scope: Scope, receive: Receive, send: Send) -> None:
    """Ray's proxy, when the replica ends that had the request: it says nothing at all."""


async def test_a_request_whose_replica_died_is_told_to_come_again() -> None:
    async with in_front_of(dying) as client:
        answer = await client.post("/detect", content=b"picture", headers={"X-Request-ID": "mine"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("rays", "ours", "code", "wait"),
    [(408, 504, "deadline_passed", None), (429, 429, "queue_full", "7"), (503, 503, "unavailable", "7")],
)
async def test_rays_own_refusals_read_like_ours(rays: int, ours: int, code: str, wait: str | None) -> None:
    async with in_front_of(saying(rays, "no", retry_after="7")) as client:
        answer = await client.post("/detect", content=b"picture")
    assert (answer.status_code, answer.json()["code"], answer.headers.get("retry-after")) == (ours, code, wait)


async def test_before_any_replica_serves_the_answer_is_503_and_not_404() -> None:
    async with in_front_of(saying(404, "Path '/' not found.")) as client:
        answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"


async def test_answers_of_the_app_pass_with_one_request_id() -> None:
    ours = saying(413, '{"status": 413}', x_content_type_options="nosniff")
    async with in_front_of(ours) as client:
        answer = await client.post("/detect", content=b"picture", headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.text) == (413, '{"status": 413}')
    assert answer.headers.get_list("x-request-id") == ["mine"]


async def test_ray_waits_a_little_longer_than_the_replica_and_strangers_cannot_steer_it() -> None:
    seen: dict[str, str] = {}

    async def ray(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update({name.decode(): value.decode() for name, value in scope["headers"]})

    async with in_front_of(ray) as client:
        asked = {"X-Request-Disconnect-Disabled": "?1", "X-Request-Timeout-Seconds": "0", "X-Request-ID": "a b\t"}
        await client.get("/", headers=asked | {"X-Request-Timeout-Ms": "5000"})
        assert float(seen["x-request-timeout-seconds"]) == 7
        assert seen.get("x-request-disconnect-disabled", "?0") == "?0"
        assert seen["x-request-id"].isalnum()
        await client.get("/", headers={"X-Request-Timeout-Ms": "soon"})
        assert float(seen["x-request-timeout-seconds"]) == 5


def reading(got: list[int], kinds: list[str]) -> ASGIApp:
    """Ray's proxy, which reads as fast as it can and asks nobody."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            got.append(len(message["body"]))
            if sum(got) > 2 * LIMIT:
                return
        kinds.append(message["type"])

    return app


async def test_the_proxy_keeps_no_more_of_all_bodies_than_it_may() -> None:
    async def body() -> Any:
        for _ in range(4):
            yield b"x" * 1000

    got: list[int] = []
    kinds: list[str] = []
    holding = Front(reading(got, kinds), Settings(max_body_bytes=LIMIT), 3000)
    with holding._bodies.tab() as others:
        others(1500)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(holding), base_url="http://front") as client:
            answer = await client.post("/detect", content=body())
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert (sum(got), kinds) == (1000, ["http.disconnect"])  # so Ray takes the request back
    assert holding._bodies.held == 0


def test_the_front_starts_without_torch() -> None:
    program = "import sys, service.server.ray_proxy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --------------------------------------------------------------------------------------------- the application


@pytest.fixture
def scale_out() -> Any:
    pytest.importorskip("ray", reason=NO_RAY)
    from service import scale_out

    return scale_out


@contextlib.contextmanager
def logs_as_they_are() -> Iterator[None]:
    """What a replica does to the log of its process is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def deployment(application: Any) -> Any:
    return application._bound_deployment


def test_a_replica_takes_more_than_its_queue_holds_so_that_it_can_refuse_by_itself(scale_out: Any) -> None:
    settings = Settings(max_queue=10, drain_seconds=7, device="cpu")
    made = deployment(scale_out.build(settings, scale_out.Scale(min_replicas=2, max_replicas=2)))
    assert made.num_replicas == 2
    assert made.max_ongoing_requests > settings.max_queue
    assert made.max_queued_requests == settings.max_queue
    assert made._deployment_config.backpressure_config.status_code == 429
    assert made._deployment_config.graceful_shutdown_timeout_s > settings.drain_seconds
    assert made.ray_actor_options["num_gpus"] == 0


def test_between_two_numbers_replicas_are_scaled_on_what_they_have_under_way(scale_out: Any) -> None:
    made = deployment(scale_out.app(scale_out.Scale(max_replicas=5, num_gpus=1, max_batch=4)))
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 5, 8)
    assert made.ray_actor_options["num_gpus"] == 1


def test_a_wrong_argument_is_told_before_anything_starts(scale_out: Any) -> None:
    with pytest.raises(SettingsError, match="FRCNN_WIEGHTS is not a setting"):
        scale_out.app(scale_out.Scale(wieghts="lite-voc20"))
    with pytest.raises(SettingsError, match="one GPU alone"):
        scale_out.build(Settings(device="cuda:1"), scale_out.Scale())
    with pytest.raises(SettingsError, match="cannot be at least 3"):
        scale_out.build(Settings(device="cpu"), scale_out.Scale(min_replicas=3, max_replicas=2))


def test_each_replica_of_a_node_serves_its_own_metrics_on_a_port_of_its_own(
    scale_out: Any, unused_tcp_port: int
) -> None:
    ports = []
    for ready in (0, 1):
        metrics = Metrics()
        metrics.ready.set(ready)
        ports.append(scale_out.serve_metrics(metrics, unused_tcp_port))
    assert unused_tcp_port <= ports[0] < ports[1]
    told = [httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in ports]
    assert [f"frcnn_ready {ready}.0" in text for ready, text in enumerate(told)] == [True, True]


def test_a_replica_is_unhealthy_when_its_detector_is(scale_out: Any) -> None:
    replica = scale_out.Replica(Settings(device="cpu", log_level="error"), None)
    with logs_as_they_are():
        pipeline = replica.__serve_build_asgi_app__().state.pipeline
    with pytest.raises(RuntimeError, match="not loaded"):
        replica.check_health()
    pipeline.workers.append(Worker(lambda: pytest.fail("it is not started"), patience=1))
    pipeline.worker.give_up("The device is gone.")
    with pytest.raises(RuntimeError, match="The device is gone"):
        replica.check_health()


def test_without_ray_the_command_says_what_to_install() -> None:
    program = "import sys; sys.modules['ray'] = None; from service.cli.main import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", "--ray"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'frcnn-service[ray]'" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------------ with Ray


def rays_processes(folder: Path) -> list[str]:
    """Command lines of processes that were started with their files in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"RAY_TMPDIR={folder}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def until(true: Callable[[], Any], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def rays_folder() -> Iterator[Path]:
    """Where Ray keeps its files: a short path, as those of its sockets must be."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@needs_ray
@pytest.mark.slow
def test_frcnn_serve_ray_keeps_the_contract_and_loses_nothing_at_its_end(
    rays_folder: Path, repo: Path, unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    settings = {
        "RAY_TMPDIR": str(rays_folder),
        "FRCNN_DEVICE": "cpu",
        "FRCNN_TORCH_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "service.cli", "serve", "--ray"]
    options = ["--port", str(unused_tcp_port), "--max-body-bytes", "300000", "--log-level", "warning"]
    with (rays_folder / "log").open("w") as log, httpx.Client(base_url=url, timeout=PATIENCE) as client:
        process = subprocess.Popen(
            [*command, *options], env=os.environ | settings, cwd=repo, stdout=log, stderr=subprocess.STDOUT
        )
        try:

            def ready() -> bool:
                assert process.poll() is None, (rays_folder / "log").read_text()
                try:
                    return client.get("/readyz", timeout=5).status_code == 200
                except httpx.TransportError:
                    return False

            assert until(ready, PATIENCE), (rays_folder / "log").read_text()
            picture = (repo / "service/inference/self_test.jpg").read_bytes()
            found = client.post("/detect", content=picture, headers={"X-Request-ID": "mine"})
            assert found.json()["labels"] == ["cat"]
            assert found.headers.get_list("x-request-id") == ["mine"]
            for path, body, status in (
                ("/detect", b"x" * 400_000, 413),
                ("/detect", b"x" * 4_000_000, 413),
                ("/detect", b"no picture", 415),
                ("/detect?score_threshold=2", picture, 422),
                ("/nothing", b"", 404),
            ):
                answer = client.post(path, content=body)
                assert answer.status_code == status, answer.text
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["request_id"] == answer.headers["x-request-id"]
            assert 'frcnn_requests_total{route="/detect",status="200"}' in client.get("/metrics").text
            assert client.get("/docs").status_code == 200

            with concurrent.futures.ThreadPoolExecutor(12) as threads:
                accepted = [threads.submit(client.post, "/detect", content=picture) for _ in range(12)]
                assert until(lambda: "frcnn_queue_depth 12.0" in client.get("/metrics").text or accepted[0].done())
                process.send_signal(signal.SIGTERM)
                assert [one.result().status_code for one in accepted] == [200] * 12
            assert process.wait(PATIENCE) == 0, (rays_folder / "log").read_text()
        finally:
            if process.poll() is None:
                process.kill()
    assert until(lambda: not rays_processes(rays_folder)), rays_processes(rays_folder)


@needs_ray
@pytest.mark.slow
def test_no_answer_is_lost_when_a_replica_and_then_a_node_is_killed_under_load(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "ledger.json"
    command = [sys.executable, "-m", "benchmarks.serving.ray_failover", "--clients", "3", "--answers", "10"]
    before = set(Path("/tmp").glob("ledger*"))
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=repo, capture_output=True, text=True, check=False, timeout=2 * PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads(out.read_text())
    assert ledger["lost"] == []
    assert ledger["wrong"] == 0
    assert ledger["answered"] == ledger["sent"] >= 5 * 10
    assert [phase["answered"] >= 10 for phase in ledger["phases"]] == [True] * 5
    assert ledger["phases"][2]["replicas"] == ledger["phases"][4]["replicas"] == 2
    assert ledger["left_running"] == []
    assert set(Path("/tmp").glob("ledger*")) == before


def test_the_proxies_know_the_limits_of_the_service() -> None:
    known = environment(Settings(max_body_bytes=12345, timeout_ms=99))
    assert (known["FRCNN_MAX_BODY_BYTES"], known["FRCNN_TIMEOUT_MS"]) == ("12345", "99")
    assert known["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "service.server.ray_proxy:proxy_middlewares"
