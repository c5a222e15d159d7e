"""Fetching weights from a server that works, and from one with faults."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from model.checkpoint import CheckpointError, load_manifest
from service.cli.fetch import FetchError, download, fetch, published_url

DATA = bytes(range(256)) * 4000  # a megabyte
DIGEST = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serve ``data``; each of ``faults`` handles one request instead. ``ranges``: the Range headers of the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data = DATA
        self.ranges: list[str | None] = []
        self.faults: list[Callable[[Handler], None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        range_header = self.headers.get("Range")
        self.server.ranges.append(range_header)
        if self.server.faults:
            self.server.faults.pop(0)(self)
        else:
            self.send_data()

    def send_data(
        self,
        *,
        ranges: bool = True,
        stated_length: int | None = None,
        stop_after: int | None = None,
        start: int | None = None,
    ) -> None:
        """Send the data; by option without ranges, with a wrong length, with fewer bytes, from another offset."""
        data, range_header = self.server.data, self.headers.get("Range")
        begin = int(range_header.removeprefix("bytes=").rstrip("-")) if range_header and ranges else 0
        if begin >= len(data) and begin:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if start is not None:
            begin = start
        body = data[begin:]
        self.send_response(206 if range_header and ranges else 200)
        if range_header and ranges:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(body) if stated_length is None else stated_length))
        self.end_headers()
        self.wfile.write(body if stop_after is None else body[:stop_after])
        self.close_connection = True

    def status(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.pth"


def fetch_from(server: Server, target: Path, **options: object) -> Path:
    return download(server.url, target, DIGEST, pause=0.001, **options)  # type: ignore[arg-type]


def assert_nothing_kept(target: Path) -> None:
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


def test_a_whole_file_with_progress(server: Server, target: Path) -> None:
    progress: list[tuple[int, int | None]] = []
    assert fetch_from(server, target, progress=lambda *counts: progress.append(counts)) == target
    assert target.read_bytes() == DATA
    assert list(target.parent.iterdir()) == [target]
    assert progress[-1] == (len(DATA), len(DATA))
    assert [downloaded for downloaded, _ in progress] == sorted(downloaded for downloaded, _ in progress)


def test_a_digest_of_eight_digits_is_enough(server: Server, target: Path) -> None:
    assert download(server.url, target, DIGEST[:8]).read_bytes() == DATA


def test_a_connection_that_is_cut_off_is_continued(server: Server, target: Path) -> None:
    server.faults = [lambda handler: handler.send_data(stop_after=300_000)] * 2
    progress: list[tuple[int, int | None]] = []
    fetch_from(server, target, progress=lambda *counts: progress.append(counts))
    assert target.read_bytes() == DATA
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]
    assert progress[-1] == (len(DATA), len(DATA))


def test_a_second_call_continues_the_first(server: Server, target: Path) -> None:
    server.faults = [lambda handler: handler.send_data(stop_after=300_000), lambda handler: handler.status(503)]
    with pytest.raises(FetchError, match="next call goes on from there"):
        fetch_from(server, target, attempts=2)
    assert not target.exists()
    fetch_from(server, target)
    assert target.read_bytes() == DATA
    assert server.ranges == [None, "bytes=300000-", "bytes=300000-"]


def test_a_server_without_ranges_sends_the_whole_file(server: Server, target: Path) -> None:
    server.faults = [
        lambda handler: handler.send_data(stop_after=300_000),
        lambda handler: handler.send_data(ranges=False),
    ]
    fetch_from(server, target)
    assert target.read_bytes() == DATA


def test_a_range_from_another_offset_is_not_appended(server: Server, target: Path) -> None:
    server.faults = [
        lambda handler: handler.send_data(stop_after=300_000),
        lambda handler: handler.send_data(start=100),
    ]
    fetch_from(server, target)
    assert target.read_bytes() == DATA


def test_a_stated_length_that_is_too_large(server: Server, target: Path) -> None:
    """The file is complete, though every connection ends in an error."""
    server.faults = [lambda handler: handler.send_data(stated_length=len(DATA) + 999)] * 9
    fetch_from(server, target, attempts=3)
    assert target.read_bytes() == DATA


def test_a_stated_length_that_is_too_small(server: Server, target: Path) -> None:
    server.faults = [lambda handler: handler.send_data(stated_length=1000)] * 9
    with pytest.raises(FetchError, match="its SHA-256 is"):
        fetch_from(server, target)
    assert_nothing_kept(target)


def test_wrong_bytes(server: Server, target: Path) -> None:
    server.data = b"<html>Please log in to the network</html>"
    with pytest.raises(FetchError, match=rf"127\.0\.0\.1 sent is not weights\.pth.*{DIGEST}.*Nothing was kept"):
        fetch_from(server, target)
    assert_nothing_kept(target)


def test_an_existing_file_is_kept_after_a_failure(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    server.data = b"wrong"
    with pytest.raises(FetchError):
        fetch_from(server, target)
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("content", [b"another file's beginning", DATA + b"and more"], ids=["other", "longer"])
def test_a_part_of_another_file_is_deleted(server: Server, target: Path, content: bytes) -> None:
    target.parent.mkdir()
    target.with_name("weights.pth.part").write_bytes(content)
    fetch_from(server, target)
    assert target.read_bytes() == DATA
    assert list(target.parent.iterdir()) == [target]


def test_a_complete_part_is_not_downloaded_again(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("weights.pth.part").write_bytes(DATA)
    fetch_from(server, target)
    assert target.read_bytes() == DATA
    assert server.ranges == [f"bytes={len(DATA)}-"]


def test_a_busy_server_gets_another_request(server: Server, target: Path) -> None:
    server.faults = [lambda handler: handler.status(503), lambda handler: handler.status(429)]
    assert fetch_from(server, target).read_bytes() == DATA


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_that_is_not_there(server: Server, target: Path, status: int) -> None:
    server.faults = [lambda handler: handler.status(status)]
    with pytest.raises(FetchError, match=f"answered {status}"):
        fetch_from(server, target)
    assert len(server.ranges) == 1, "asking again would not help"


def test_redirects_are_followed(server: Server, target: Path) -> None:
    server.faults = [lambda handler: handler.status(302, Location="/elsewhere")]
    assert fetch_from(server, target).read_bytes() == DATA


def test_a_redirect_that_drops_encryption_is_refused(target: Path) -> None:
    def response(request: httpx.Request) -> httpx.Response:
        if request.url.scheme == "https":
            return httpx.Response(302, headers={"Location": "http://example.org/weights.pth"})
        return httpx.Response(200, content=DATA)

    transport = httpx.MockTransport(response)
    with (
        httpx.Client(transport=transport, follow_redirects=True) as client,
        pytest.raises(FetchError, match="not encrypted"),
    ):
        download("https://example.org/weights.pth", target, DIGEST, client=client)
    assert_nothing_kept(target)


def test_an_endless_response_is_stopped(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.fetch.MAX_BYTES", 1000)
    with pytest.raises(FetchError, match="more than 1000 bytes"):
        fetch_from(server, target)


def test_without_a_network_the_message_has_advice(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(FetchError) as error:
        download(f"http://127.0.0.1:{port}/weights.pth", target, DIGEST, attempts=2, pause=0.001)
    message = str(error.value)
    for advice in ("HTTPS_PROXY", str(target.parent), "FRCNN_WEIGHTS", f"127.0.0.1:{port}/weights.pth"):
        assert advice in message


def test_the_environments_proxy_is_used(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/weights.pth"))
    assert download("http://far.invalid/weights.pth", target, DIGEST).read_bytes() == DATA


def test_an_unsupported_proxy(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "gopher://127.0.0.1:1")
    with pytest.raises(FetchError, match="proxy"):
        download("http://far.invalid/weights.pth", target, DIGEST)


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FetchError, match=r"Cannot write .*FRCNN_CACHE_DIR"):
        fetch_from(server, tmp_path / "file" / "weights.pth")


class TestFetch:
    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Path:
        path = tmp_path / "manifest.toml"
        common = 'preset = "RESNET50_FPN"\nclasses = ["cat"]\nlicence = "none"\ndescription = "none"\n'
        path.write_text(
            f'[[checkpoint]]\nname = "far"\nfile = "far.pth"\nsha256 = "{DIGEST[:8]}"\n{common}'
            'source = "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"\n'
            f'[[checkpoint]]\nname = "lost"\nfile = "lost.pth"\nsha256 = "{DIGEST}"\n{common}'
        )
        return path

    def test_by_name(self, server: Server, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.cli.fetch.published_url", lambda entry: server.url)
        for _ in range(2):
            assert fetch("far", manifest=manifest, cache=tmp_path / "cache").read_bytes() == DATA
        assert len(server.ranges) == 1, "what is here is not fetched again"
        (tmp_path / "cache" / "far.pth").write_bytes(b"damaged")
        assert fetch("far", manifest=manifest, cache=tmp_path / "cache").read_bytes() == DATA

    def test_names_that_cannot_be_fetched(self, manifest: Path, tmp_path: Path) -> None:
        with pytest.raises(FetchError, match=r"No checkpoint 'near' to fetch\. There are far"):
            fetch("near", manifest=manifest, cache=tmp_path)
        with pytest.raises(FetchError, match="'lost' is not published"):
            fetch("lost", manifest=manifest, cache=tmp_path)

    def test_addresses_come_from_torchvision(self) -> None:
        for entry in load_manifest():
            if entry.source is not None:
                url = published_url(entry)
                assert url.startswith("https://")
                assert url.endswith(entry.file)

    def test_an_unknown_member(self, manifest: Path) -> None:
        manifest.write_text(manifest.read_text().replace("COCO_V1", "COCO_V9"))
        with pytest.raises(CheckpointError, match="torchvision publishes no"):
            published_url(load_manifest(manifest)[0])
