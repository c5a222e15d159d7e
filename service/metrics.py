"""The Prometheus metrics. Their names are part of the contract; each app has a registry of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from model.structures import TIMED_STAGES, DetectorInfo

log = logging.getLogger("frcnn.metrics")

# The stages of one image in order: the labels of frcnn_stage_seconds and the keys of `timings_ms`, which ends with
# their sum, `total`.
STAGES = ("decode", "queue", *TIMED_STAGES, "serialize")
KILL_REASONS = ("deadline", "memory", "processor", "crash")  # of frcnn_image_processes_killed_total
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_COUNTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class ImagePool(Protocol):
    """What the metrics read of ``service.images.pool.ImagePool``."""

    @property
    def busy(self) -> int: ...
    @property
    def idle(self) -> int: ...
    @property
    def waiting(self) -> int: ...


class Metrics:
    """The counters, gauges and histograms of one app."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter("frcnn_requests_total", "Requests answered", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "frcnn_request_seconds", "Seconds to answer a request", ["route"], buckets=_SECONDS, registry=registry
        )
        self.stage_seconds = Histogram(
            "frcnn_stage_seconds", "Seconds an image spent in a stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "frcnn_batch_size", "Images in a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=registry
        )
        self.canvas_padding_ratio = Histogram(
            "frcnn_canvas_padding_ratio",
            "Part of a batch's canvases that is padding",
            buckets=(0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1),
            registry=registry,
        )
        self.queue_depth = Gauge("frcnn_queue_depth", "Images accepted and not yet answered", registry=registry)
        self.inflight = Gauge("frcnn_inflight", "Requests being answered", registry=registry)
        self.rejected = Counter("frcnn_rejected_total", "Requests refused, by reason", ["reason"], registry=registry)
        self.batch_failures = Counter(
            "frcnn_batch_failures_total", "Attempts at a batch that failed on the device", ["kind"], registry=registry
        )
        self.image_processes = Gauge(
            "frcnn_image_processes", "Processes that decode and draw", ["state"], registry=registry
        )
        self.image_jobs_waiting = Gauge(
            "frcnn_image_jobs_waiting", "Images that wait for such a process", registry=registry
        )
        self.image_processes_killed = Counter(
            "frcnn_image_processes_killed_total",
            "Processes that decode and draw, ended by force or by a limit, by reason",
            ["reason"],
            registry=registry,
        )
        for reason in KILL_REASONS:
            self.image_processes_killed.labels(reason)
        self.detections = Histogram(
            "frcnn_detections_per_image", "Detections in an image", buckets=_COUNTS, registry=registry
        )
        self.proposals = Histogram(
            "frcnn_proposals_per_image", "Proposals returned for an image", buckets=_COUNTS, registry=registry
        )
        self.ready = Gauge(
            "frcnn_ready", "1 where the service answers, 0 where it starts, drains or has failed", registry=registry
        )

    def add_detectors(self, infos: Callable[[], Sequence[DetectorInfo]]) -> None:
        """Report the detectors, one a device, that ``infos`` returns at each scrape, and their devices' memory."""
        self.registry.register(_Model(infos))
        self.registry.register(_DeviceMemory([info.device for info in infos()]))

    def add_image_pool(self, pool: ImagePool) -> None:
        """Report the processes and the waiting jobs of ``pool`` at each scrape."""
        self.image_processes.labels("busy").set_function(lambda: pool.busy)
        self.image_processes.labels("idle").set_function(lambda: pool.idle)
        self.image_jobs_waiting.set_function(lambda: pool.waiting)

    def observe_image(self, seconds: Mapping[str, float], detections: int, proposals: int | None) -> None:
        """Count one answered image; ``seconds`` by stage."""
        for stage in STAGES:
            if stage in seconds:
                self.stage_seconds.labels(stage).observe(seconds[stage])
        self.detections.observe(detections)
        if proposals is not None:
            self.proposals.observe(proposals)

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes."""
        return generate_latest(self.registry)


class _Model(Collector):
    """The detectors that are served, read at each scrape."""

    def __init__(self, infos: Callable[[], Sequence[DetectorInfo]]) -> None:
        self._infos = infos

    def collect(self) -> Iterator[GaugeMetricFamily]:
        infos = self._infos()
        names = ["name", "preset", "precision", "device", "sha256"]
        family = GaugeMetricFamily("frcnn_model_info", "What is being served; always 1", labels=names)
        for info in infos:
            family.add_metric([info.name, info.preset, info.precision, info.device, info.sha256 or "unknown"], 1)
        yield family


class _DeviceMemory(Collector):
    """Bytes that this process holds on the device: on a CPU its resident memory, on a GPU what torch reserved."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = devices

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("frcnn_device_memory_bytes", "Memory held on the device", labels=["device"])
        for device in dict.fromkeys(self._devices):
            family.add_metric([device], self._bytes(device))
        yield family

    @staticmethod
    def _bytes(device: str) -> float:
        if device.startswith("cuda"):
            import torch

            return float(torch.cuda.memory_reserved(device))
        try:
            with open("/proc/self/statm") as file:
                pages = int(file.read().split()[1])
        except OSError:  # not Linux
            return float("nan")
        import resource

        return float(pages * resource.getpagesize())
