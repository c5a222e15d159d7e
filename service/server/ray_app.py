"""The same app on Ray Serve: one replica a GPU, as many as the load asks for, one address before them all.

    frcnn serve --ray --max-replicas 8
    serve run service.server.ray_app:app max_replicas=8 weights=lite-voc20     # on a cluster that is there already

A replica is the whole service but for its socket: its own queue, batches, canary and limits, and so its own 429s. Ray's
proxy takes the requests; ``service.server.ray_proxy`` stands around it where the environment says so before Ray starts on a
node, which ``frcnn serve --ray`` sees to for the cluster that it starts.
"""
# No `from __future__ import annotations`: Ray looks for the class that the builder's argument is annotated with.

import contextlib
import logging
import os
import secrets
import signal
import threading
import time
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, BackpressureConfig, HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

from model.runtime.malloc import configure_malloc
from service.app import create_app
from service.inference.pipeline import Pipeline
from service.metrics import Metrics
from service.server import ray_proxy
from service.server.logging import configure_logging
from service.settings import Settings, SettingsError, load_settings

log = logging.getLogger("frcnn.scale_out")

NAME = "frcnn"


class Scale(BaseModel):
    """How many replicas, and on what. Whatever else is given is a setting of the service: ``weights``, ``max_batch``.

    min_replicas, max_replicas: the same number switches autoscaling off. target_ongoing_requests: what autoscaling
    aims at for a replica; None for two full batches, one on the device and one waiting. num_gpus, num_cpus: of one
    replica; num_gpus None for 1 where the cluster has GPUs now and the device is not the CPU, else 0. metrics_port:
    each replica serves its own metrics on the first free port from there on, None for nowhere.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float | None = Field(None, gt=0)
    num_gpus: float | None = Field(None, ge=0)
    num_cpus: float = Field(1, ge=0)
    metrics_port: int | None = Field(None, ge=1, le=65535 - 64)


def app(scale: Scale) -> serve.Application:
    """What ``serve run`` and a Serve config's ``import_path`` ask for. Raises ``SettingsError``."""
    return build(load_settings(**(scale.model_extra or {})), scale)


def build(settings: Settings, scale: Scale) -> serve.Application:
    """The application: ``scale`` many replicas with these ``settings``. Raises ``SettingsError``."""
    if settings.device.startswith("cuda:"):
        raise SettingsError("With Ray each replica sees one GPU alone: FRCNN_DEVICE must be auto, cuda or cpu.")
    if scale.max_replicas < scale.min_replicas:
        raise SettingsError(f"At most {scale.max_replicas} replicas cannot be at least {scale.min_replicas}.")
    replicas: dict[str, Any] = {"num_replicas": scale.max_replicas}
    if scale.min_replicas < scale.max_replicas:
        replicas = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scale.min_replicas,
                max_replicas=scale.max_replicas,
                target_ongoing_requests=scale.target_ongoing_requests or 2 * settings.max_batch,
            )
        }
    gpus = (1 if _has_gpus(settings) else 0) if scale.num_gpus is None else scale.num_gpus
    deployed = serve.deployment(
        name="detector",
        ray_actor_options={"num_cpus": scale.num_cpus, "num_gpus": gpus},
        # Over its queue's bound a replica says 429 itself, with a wait that it has measured. It can say so only to
        # requests that reach it: so it takes as many again. What is more than that, Ray refuses.
        max_ongoing_requests=2 * settings.max_queue + 16,
        max_queued_requests=settings.max_queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=settings.drain_seconds + 5,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        max_constructor_retry_count=3,  # a detector that cannot be loaded seldom can the twentieth time
        logging_config=LoggingConfig(enable_access_log=False),  # ours says more
        **replicas,
    )
    return deployed(serve.ingress()(Replica)).bind(settings, scale.metrics_port)


class Replica:
    """One app in one of Ray's processes. It takes requests once its lifespan has begun: after the canary."""

    def __init__(self, settings: Settings, metrics_port: int | None) -> None:
        self._settings = settings
        self._metrics_port = metrics_port

    def __serve_build_asgi_app__(self) -> FastAPI:
        settings = self._settings
        configure_logging(settings.log_format, settings.log_level)
        configure_malloc()
        if settings.cache_dir is not None:
            os.environ["FRCNN_CACHE_DIR"] = str(settings.cache_dir)
        made = create_app(settings)
        self._pipeline: Pipeline = made.state.pipeline
        if self._metrics_port is not None:
            serve_metrics(self._pipeline.metrics, self._metrics_port)
        return made

    def check_health(self) -> None:
        """Ray asks every few seconds, and puts another replica in the place of one that raises three times."""
        if (reason := self._pipeline.dead) is not None:
            raise RuntimeError(reason)


def serve_metrics(metrics: Metrics, first: int) -> int | None:
    """Serve them in a thread on the first free port from ``first`` on, which is returned; None where there is none."""
    from prometheus_client import start_http_server

    for port in range(first, first + 64):  # other replicas of this node, and one that is being replaced
        with contextlib.suppress(OSError):
            start_http_server(port, registry=metrics.registry)
            log.info("metrics are served", extra={"port": port})
            return port
    log.error("no port is free for metrics", extra={"first": first})
    return None


def _has_gpus(settings: Settings) -> bool:
    if settings.device == "cpu":
        return False
    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU"))  # type: ignore[no-untyped-call]
    from model.detector import choose_devices

    return choose_devices("auto") != ("cpu",)


def run(settings: Settings, scale: Scale) -> None:
    """Serve until SIGTERM or Ctrl-C, and then drain. On the cluster in RAY_ADDRESS, or on one of its own.

    Raises ``SettingsError``, ``ConnectionError`` where there is no such cluster, ``RuntimeError`` where nothing serves.
    """
    if settings.port == 0:
        raise SettingsError("With Ray FRCNN_PORT cannot be 0: every node listens on the same port.")
    stop = threading.Event()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.update(ray_proxy.environment(settings))
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # who knows the token may run code here; Ray would keep it in a file for everybody to read
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(**({"address": address} if address else {"include_dashboard": False}), log_to_driver=True)
    try:
        application = build(settings, scale)
        http = HTTPOptions(
            host=settings.host,
            port=settings.port,
            ssl_certfile=settings.tls_cert_file and str(settings.tls_cert_file),
            ssl_keyfile=str(settings.tls_key_file or settings.tls_cert_file) if settings.tls_cert_file else None,
        )
        serve.start(proxy_location=ProxyLocation.EveryNode, http_options=http)
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda *_: _end(stop))
        serve.run(application, name=NAME, route_prefix="/")
        log.info("serving", extra={"host": settings.host, "port": settings.port})
        stop.wait()
        log.info("draining", extra={"grace_seconds": settings.drain_seconds})
        _drain(settings.drain_seconds)
        log.info("drained")
    except RayError as error:
        raise RuntimeError(f"Ray could not serve: {error}") from error
    finally:
        if address:  # others may serve there too
            serve.delete(NAME, _blocking=False)
        else:
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _drain(seconds: float) -> None:
    """Take the application back; the proxies stay until every replica has answered what it had accepted."""
    serve.delete(NAME, _blocking=False)
    end = time.monotonic() + seconds + 10  # Ray ends replicas that take longer
    while NAME in serve.status().applications and time.monotonic() < end:
        time.sleep(0.1)


def _end(stop: threading.Event) -> None:
    """A signal has come; the second one does not wait for the first's work."""
    if stop.is_set():
        raise KeyboardInterrupt
    stop.set()
