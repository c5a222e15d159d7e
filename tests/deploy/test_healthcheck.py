"""The container's health check."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.service.conftest import FaultyDetector, serving


def run_health_check(repo: Path, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, repo / "docker/healthcheck.py"],
        env=os.environ | {"FRCNN_PORT": str(port)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_check_passes_while_the_service_is_ready(repo: Path) -> None:
    with serving(lambda _: FaultyDetector()) as live:
        port = urlsplit(live.url).port
        assert port is not None
        done = run_health_check(repo, port)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_check_fails_where_nothing_listens(repo: Path, unused_tcp_port: int) -> None:
    done = run_health_check(repo, unused_tcp_port)
    assert done.returncode == 1
    assert "no answer" in done.stderr
