"""The app on Ray Serve: one replica a GPU, as many as the load requires, behind one address.

    frcnn serve --ray --max-replicas 8
    serve run service.server.ray_app:app max_replicas=8 weights=lite-voc20     # on an existing cluster

A replica is the whole service without its socket: it has its own queue, batches, self-test and limits, and so answers
429 by itself. Ray's proxy receives the requests, with ``service.server.ray_proxy`` as middleware. That has to be in the
environment before Ray starts on a node; ``frcnn serve --ray`` sets it for the cluster that it starts.
"""
# No `from __future__ import annotations`: Ray reads the class from the annotation of the builder's argument.

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
    """The number of replicas and their resources. Any other field is a setting of the service: ``weights`` and so on.

    min_replicas, max_replicas: the same number switches autoscaling off. target_ongoing_requests: the number for each
    replica that autoscaling aims at; None for two full batches, one on the device and one waiting. num_gpus, num_cpus:
    of one replica; num_gpus None means 1 where the cluster has GPUs now and the device is not the CPU, else 0.
    metrics_port: each replica serves its own metrics on the first free port from this one on; None for no metrics.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float | None = Field(None, gt=0)
    num_gpus: float | None = Field(None, ge=0)
    num_cpus: float = Field(1, ge=0)
    metrics_port: int | None = Field(None, ge=1, le=65535 - 64)


def app(scale: Scale) -> serve.Application:
    """Build the application for ``serve run`` and for a Serve config's ``import_path``. Raises ``SettingsError``."""
    return build(load_settings(**(scale.model_extra or {})), scale)


def build(settings: Settings, scale: Scale) -> serve.Application:
    """Return the application: replicas as ``scale`` says, each with these ``settings``. Raises ``SettingsError``."""
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
        # Above its queue's limit a replica responds with 429 itself, with a Retry-After from measured times. It can do
        # so only for requests that reach it, so Ray passes on twice as many, and refuses more than that.
        max_ongoing_requests=2 * settings.max_queue + 16,
        max_queued_requests=settings.max_queue,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=settings.drain_seconds + 5,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        max_constructor_retry_count=3,  # Ray's default of 20 only delays the report of a detector that cannot load
        logging_config=LoggingConfig(enable_access_log=False),  # the app logs each request
        **replicas,
    )
    return deployed(serve.ingress()(Replica)).bind(settings, scale.metrics_port)


class Replica:
    """One app in one of Ray's processes. It receives requests once its lifespan has started: after the self-test."""

    def __init__(self, settings: Settings, metrics_port: int | None) -> None:
        self._settings = settings
        self._metrics_port = metrics_port

    def __serve_build_asgi_app__(self) -> FastAPI:
        settings = self._settings
        configure_logging(settings.log_format, settings.log_level)
        configure_malloc()
        if settings.cache_dir is not None:
            os.environ["FRCNN_CACHE_DIR"] = str(settings.cache_dir)
        asgi_app = create_app(settings)
        self._pipeline: Pipeline = asgi_app.state.pipeline
        if self._metrics_port is not None:
            serve_metrics(self._pipeline.metrics, self._metrics_port)
        return asgi_app

    def check_health(self) -> None:
        """Raise ``RuntimeError`` where the detector has failed; Ray replaces a replica after three such failures."""
        if (reason := self._pipeline.dead) is not None:
            raise RuntimeError(reason)


def serve_metrics(metrics: Metrics, first_port: int) -> int | None:
    """Serve ``metrics`` in a thread, on the first free port of the 64 from ``first_port`` on.

    Return the port; None where none is free.
    """
    from prometheus_client import start_http_server

    for port in range(first_port, first_port + 64):  # other replicas of this node use ports too
        with contextlib.suppress(OSError):
            start_http_server(port, registry=metrics.registry)
            log.info("metrics are served", extra={"port": port})
            return port
    log.error("no port is free for metrics", extra={"first": first_port})
    return None


def _has_gpus(settings: Settings) -> bool:
    if settings.device == "cpu":
        return False
    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU"))  # type: ignore[no-untyped-call]
    from model.detector import choose_devices

    return choose_devices("auto") != ("cpu",)


def run(settings: Settings, scale: Scale) -> None:
    """Serve until SIGTERM or Ctrl-C, and then drain; on the cluster in RAY_ADDRESS, or on a new one.

    Raises ``SettingsError``, ``ConnectionError`` where there is no such cluster, and ``RuntimeError`` where Ray fails.
    """
    if settings.port == 0:
        raise SettingsError("With Ray FRCNN_PORT cannot be 0: every node listens on the same port.")
    stop = threading.Event()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.update(ray_proxy.environment(settings))
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # the token lets its holder run code here; Ray's own would be in a readable file
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
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda *_: _handle_signal(stop))
        serve.run(application, name=NAME, route_prefix="/")
        log.info("serving", extra={"host": settings.host, "port": settings.port})
        stop.wait()
        log.info("draining", extra={"grace_seconds": settings.drain_seconds})
        _drain(settings.drain_seconds)
        log.info("drained")
    except RayError as error:
        raise RuntimeError(f"Ray could not serve: {error}") from error
    finally:
        if address:  # other applications may run there
            serve.delete(NAME, _blocking=False)
        else:
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _drain(seconds: float) -> None:
    """Delete the application; the proxies stay until every replica has answered the requests that it had accepted."""
    serve.delete(NAME, _blocking=False)
    deadline = time.monotonic() + seconds + 10  # Ray ends replicas that take longer
    while NAME in serve.status().applications and time.monotonic() < deadline:
        time.sleep(0.1)


def _handle_signal(stop: threading.Event) -> None:
    """Start draining at the first signal; interrupt the drain at the second."""
    if stop.is_set():
        raise KeyboardInterrupt
    stop.set()
