"""The application for Ray Serve, deployed but not started."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.inference.worker import Worker
from service.metrics import Metrics
from service.settings import Settings, SettingsError

# A warning of Ray's own, when it is imported.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field` is deprecated:pydantic.warnings.PydanticDeprecatedSince20"
)


@pytest.fixture
def ray_app() -> Any:
    pytest.importorskip("ray", reason="needs Ray: pip install 'frcnn-service[ray]'")
    from service.server import ray_app

    return ray_app


@contextlib.contextmanager
def restored_logging() -> Iterator[None]:
    """Undo what a replica does to the logging of its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def deployment(application: Any) -> Any:
    return application._bound_deployment


def test_a_replica_gets_more_requests_than_its_queue_holds(ray_app: Any) -> None:
    settings = Settings(max_queue=10, drain_seconds=7, device="cpu")
    deployed = deployment(ray_app.build(settings, ray_app.Scale(min_replicas=2, max_replicas=2)))
    assert deployed.num_replicas == 2
    assert deployed.max_ongoing_requests > settings.max_queue
    assert deployed.max_queued_requests == settings.max_queue
    assert deployed._deployment_config.backpressure_config.status_code == 429
    assert deployed._deployment_config.graceful_shutdown_timeout_s > settings.drain_seconds
    assert deployed.ray_actor_options["num_gpus"] == 0


def test_replicas_are_scaled_on_their_ongoing_requests(ray_app: Any) -> None:
    deployed = deployment(ray_app.app(ray_app.Scale(max_replicas=5, num_gpus=1, max_batch=4)))
    scaling = deployed._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 5, 8)
    assert deployed.ray_actor_options["num_gpus"] == 1


def test_a_wrong_argument_is_refused_before_anything_starts(ray_app: Any) -> None:
    with pytest.raises(SettingsError, match="FRCNN_WIEGHTS is not a setting"):
        ray_app.app(ray_app.Scale(wieghts="lite-voc20"))
    with pytest.raises(SettingsError, match="one GPU alone"):
        ray_app.build(Settings(device="cuda:1"), ray_app.Scale())
    with pytest.raises(SettingsError, match="cannot be at least 3"):
        ray_app.build(Settings(device="cpu"), ray_app.Scale(min_replicas=3, max_replicas=2))


def test_each_replica_of_a_node_serves_its_metrics_on_its_own_port(ray_app: Any, unused_tcp_port: int) -> None:
    ports = []
    for ready in (0, 1):
        metrics = Metrics()
        metrics.ready.set(ready)
        ports.append(ray_app.serve_metrics(metrics, unused_tcp_port))
    assert unused_tcp_port <= ports[0] < ports[1]
    texts = [httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in ports]
    assert [f"frcnn_ready {ready}.0" in text for ready, text in enumerate(texts)] == [True, True]


def test_a_replica_with_a_dead_worker_is_unhealthy(ray_app: Any) -> None:
    replica = ray_app.Replica(Settings(device="cpu", log_level="error"), None)
    with restored_logging():
        pipeline = replica.__serve_build_asgi_app__().state.pipeline
    with pytest.raises(RuntimeError, match="not loaded"):
        replica.check_health()
    pipeline.workers.append(Worker(lambda: pytest.fail("it is not started"), watchdog_seconds=1))
    pipeline.worker.give_up("The device is gone.")
    with pytest.raises(RuntimeError, match="The device is gone"):
        replica.check_health()
