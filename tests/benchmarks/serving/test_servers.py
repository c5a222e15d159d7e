from pathlib import Path

import pytest

from benchmarks.lib.service import free_port
from benchmarks.serving import servers


def test_a_server_that_ends_at_once_is_reported_as_broken(tmp_path: Path) -> None:
    server = servers.Server("x", "ours", 1, ("sh", "-c", "echo Error: no such model; exit 3"), "/", (b"", ""))
    with (
        pytest.raises(servers.Broken, match="ended with 3: Error: no such model"),
        servers.running(server, free_port(), tmp_path),
    ):
        pass


def test_a_peer_that_is_not_installed_is_reported_as_broken(tmp_path: Path) -> None:
    with pytest.raises(servers.Broken, match="there is no"):
        servers.peer_server("BentoML", "LITE", "ours", 1, 1, 9, tmp_path, tmp_path / "nowhere")
