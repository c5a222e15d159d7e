import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving import wrk
from benchmarks.serving.servers import Broken, Server

OUTPUT = (
    'RESULT {"requests": 12, "seconds": 4.000000, "p50": 0.100000, "p95": 0.200000, "p99": 0.300000, "most": 0.4, '
    '"connect": 0, "read": 1, "write": 0, "status": 2, "timeout": 0, "engine": null}'
)


class Timed(http.server.BaseHTTPRequestHandler):
    """Answers a POST with its size, and says that the engine took 1.5 ms of it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = str(len(self.rfile.read(int(self.headers["Content-Length"])))).encode()
        self.send_response(200 if self.headers["Content-Type"] == "image/jpeg" else 415)
        self.send_header("Server-Timing", "decode;dur=7.0, backbone;dur=1.0, rpn;dur=0.5, total;dur=9.9")
        self.send_header("Content-Length", str(len(size)))
        self.end_headers()
        self.wfile.write(size)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def timed() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Timed) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_refused_requests_do_not_count_as_answered() -> None:
    point = wrk.parse(f"Running 4s test\n{OUTPUT}\n")
    assert point["requests"] == 10
    assert point["requests_per_s"] == 2.5
    assert point["errors"] == {"read": 1, "status": 2}
    assert point["p99"] == 0.3


def test_without_a_result_wrk_has_failed() -> None:
    with pytest.raises(Broken, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused")


def test_rounds_are_summarised_by_their_medians() -> None:
    rounds = [wrk.parse(OUTPUT.replace('"p50": 0.1', f'"p50": 0.{p50}')) for p50 in (1, 5, 2)]
    summary = wrk.summarise(rounds)
    assert summary["p50"] == pytest.approx(0.2)
    assert summary["errors"] == {"read": 3, "status": 6}
    assert summary["overhead"] is None


@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk (Debian has it)")
def test_wrk_posts_the_image_and_reads_the_engines_part(timed: str, tmp_path: Path) -> None:
    server = Server("x", "ours", 1, (), "/", (b"x" * 5000, "image/jpeg"))
    point = wrk.load(timed, server, 2, 1, tmp_path, stages=True)
    assert point["requests"] > 0
    assert point["errors"] == {}
    assert point["engine"] == pytest.approx(0.0015)
    refused = Server("x", "ours", 1, (), "/", (b"x", "text/plain"))
    point = wrk.load(timed, refused, 1, 1, tmp_path, stages=False)
    assert point["requests"] == 0
    assert point["errors"]["status"] > 0
