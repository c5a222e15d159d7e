"""Monitoring: promtool checks the rules, a real Prometheus evaluates every expression on a running service."""

import io
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from model.detector import Detector
from model.structures import Detections, DetectOptions, DetectorInfo
from tests.service.conftest import CLASSES, FaultyDetector, serving

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs prometheus and promtool (the Debian package prometheus)",
)


def promtool(*arguments: str, stdin: str = "") -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, input=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    if stdin:
        assert not done.stdout + done.stderr  # advice on names is no error for promtool


@needs_prometheus
def test_the_configuration_is_valid(repo: Path) -> None:
    promtool("check", "config", str(repo / "docker/prometheus/prometheus.yml"))


@needs_prometheus
def test_alerts_fire_when_they_should_and_only_then(repo: Path) -> None:
    promtool("test", "rules", str(repo / "docker/prometheus/rules.test.yml"))


def rules(repo: Path) -> list[dict[str, str]]:
    groups = yaml.safe_load((repo / "docker/prometheus/rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_alert_has_cases_that_fire_and_that_do_not(repo: Path) -> None:
    tests = yaml.safe_load((repo / "docker/prometheus/rules.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for alert in (rule["alert"] for rule in rules(repo) if "alert" in rule):
        assert {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == alert} == {True, False}, alert


def expressions(repo: Path) -> dict[str, str]:
    """Return all expressions of the dashboard and the rules; of an alert its left side, which always has a value."""
    board = json.loads((repo / "docker/grafana/dashboards/frcnn.json").read_text())
    by_name = {
        f"panel {panel['title']} {target['refId']}": target["expr"].replace("$__rate_interval", "1m")
        for panel in board["panels"]
        for target in panel["targets"]
    }
    for rule in rules(repo):
        if "record" in rule:
            by_name[rule["record"]] = rule["expr"]
        else:
            match = re.fullmatch(r"(.+) [<>] [\d.]+", rule["expr"])
            assert match, f"{rule['alert']} is not of the form `series comparison number`"
            by_name[rule["alert"]] = match[1]
    return by_name


def png(colour: tuple[int, int, int], width: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 30), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def prometheus(repo: Path, tmp_path: Path) -> Iterator[Callable[[str], httpx.Client]]:
    """Start a Prometheus with the project's configuration, but shorter intervals, on the service at an address."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(target: str) -> httpx.Client:
        config = yaml.safe_load((repo / "docker/prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        config["rule_files"] = [str(repo / "docker/prometheus/rules.yml")]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        with (tmp_path / "log").open("wb") as log:
            command = ["prometheus", *options, f"--web.listen-address={address}"]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return httpx.Client(base_url=f"http://{address}/api/v1", timeout=10)

    yield start
    for process in processes:
        process.terminate()
        process.wait(20)


class DetectorWithFaults(FaultyDetector):
    """A real detector with the faults of ``FaultyDetector``."""

    def __init__(self) -> None:
        super().__init__()
        self.real = Detector.random("LITE", seed=0, classes=CLASSES)
        self.memory_for = 3  # four at once do not fit: split, counted, answered

    @property
    def info(self) -> DetectorInfo:
        return self.real.info

    def canvas_for(self, height: int, width: int) -> tuple[int, int]:
        return self.real.canvas_for(height, width)

    def detect(self, images: Sequence[np.ndarray], options: Sequence[DetectOptions]) -> list[Detections]:
        super().detect(images, options)
        return self.real.detect(images, options)


@needs_prometheus
def test_promtool_accepts_the_metrics() -> None:
    with serving(lambda _: FaultyDetector()) as live:
        live.client.get("/model")
        assert live.client.post("/detect", content=png((9, 9, 9))).status_code == 200
        assert live.client.post("/detect", content=b"no image").status_code == 415
        assert live.client.post("/detect", content=png(FaultyDetector.POISON)).status_code == 500
        text = live.client.get("/metrics").text
        assert "frcnn_batch_failures_total{" in text
        promtool("check", "metrics", stdin=text)


@needs_prometheus
@pytest.mark.slow
def test_prometheus_counts_what_the_clients_counted(prometheus: Callable[[str], httpx.Client]) -> None:
    bodies = {200: png((9, 9, 9)), 415: b"no image", 500: png(FaultyDetector.POISON)}
    with serving(lambda _: FaultyDetector()) as live, prometheus(live.url.removeprefix("http://")) as api:
        for status, body in bodies.items():
            for _ in range(status // 100):
                assert live.client.post("/detect", content=body).status_code == status
        # Prometheus has all of them once it has scraped after the last.
        expected = {str(status): float(status // 100) for status in bodies}
        until, counts = time.monotonic() + 90, {}
        while counts != expected and time.monotonic() < until:
            counts = scraped(api, 'frcnn_requests_total{route="/detect"}', "status")
            time.sleep(0.5)
        assert counts == expected
        assert scraped(api, "frcnn_ready", "job") == {"frcnn": 1.0}
        [name] = scraped(api, "frcnn_model_info", "name")
        assert name == "fake"


def scraped(api: httpx.Client, expression: str, label: str) -> dict[str, float]:
    """Return the samples' values by a label; nothing while Prometheus starts."""
    try:
        response = api.get("/query", params={"query": expression}).raise_for_status().json()
    except httpx.HTTPError:
        return {}
    return {sample["metric"][label]: float(sample["value"][1]) for sample in response["data"]["result"]}


@needs_prometheus
@pytest.mark.slow
def test_every_expression_has_a_value_in_prometheus(repo: Path, prometheus: Callable[[str], httpx.Client]) -> None:
    stop = threading.Event()

    def load(live_url: str) -> None:
        with httpx.Client(base_url=live_url, timeout=20) as client:
            for i in range(2000):  # bounded, in case ``stop`` is never set
                if stop.is_set():
                    return
                colour = FaultyDetector.POISON if i % 7 == 3 else (9, 9, 9)
                client.post("/detect", content=png(colour, 40 + i % 60))
                client.post("/proposals", content=png((90, 9, 9)) if i % 2 else b"no image")

    missing: dict[str, str] = {}
    with serving(lambda _: DetectorWithFaults(), max_queue=5) as live, ThreadPoolExecutor(8) as clients:
        work = [clients.submit(load, live.url) for _ in range(8)]
        try:
            with prometheus(live.url.removeprefix("http://")) as api:
                missing = expressions(repo)
                until = time.monotonic() + 90
                while missing and time.monotonic() < until:
                    time.sleep(1)
                    missing = {name: expr for name, expr in missing.items() if not has_value(api, expr)}
        finally:
            stop.set()
        for task in work:
            task.result()
    assert not missing


def has_value(api: httpx.Client, expression: str) -> bool:
    """Return whether Prometheus has a number, not NaN, for it; False also while Prometheus starts."""
    try:
        response = api.get("/query", params={"query": expression}).raise_for_status().json()
    except httpx.HTTPError:
        return False
    return any(sample["value"][1] != "NaN" for sample in response["data"]["result"])
