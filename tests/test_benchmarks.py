"""What benchmarks tell: they compare the same work, read their tools rightly, and the page shows their files."""

import http.server
import shutil
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks import engine, memory, nms_rounds, pairs, report, serve
from benchmarks.engine import Found
from model.detector import Detector
from model.nms import CLASS_ITERATIONS, LEVEL_ITERATIONS
from model.runtime.precision import multiplies_bf16

SAID = (
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


def test_the_page_shows_the_results_that_are_committed() -> None:
    page = report.PAGE.read_text()
    assert report.filled(page) == page, "run python -m benchmarks.report"


def test_a_table_is_the_same_rows_on_the_page() -> None:
    table = report.Table("Title.", ("who", "ms"), [("a|b", "1.0")])
    assert table.markdown() == "\nTitle.\n\n| who | ms |\n| --- | ---: |\n| a/b | 1.0 |\n\n"


def test_refused_requests_are_no_requests_a_second() -> None:
    point = serve.parse(f"Running 4s test\n{SAID}\n")
    assert point["requests"] == 10
    assert point["requests_per_s"] == 2.5
    assert point["errors"] == {"read": 1, "status": 2}
    assert point["p99"] == 0.3


def test_without_a_result_wrk_has_failed() -> None:
    with pytest.raises(serve.Broken, match="unable to connect"):
        serve.parse("unable to connect to 127.0.0.1:1 Connection refused")


def test_rounds_are_summed_up_by_their_medians() -> None:
    rounds = [serve.parse(SAID.replace('"p50": 0.1', f'"p50": 0.{p50}')) for p50 in (1, 5, 2)]
    summary = serve.summary(rounds)
    assert summary["p50"] == pytest.approx(0.2)
    assert summary["errors"] == {"read": 3, "status": 6}
    assert summary["overhead"] is None


@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk (Debian has it)")
def test_wrk_posts_the_picture_and_reads_what_the_engine_took(timed: str, tmp_path: object) -> None:
    server = serve.Server("x", "ours", 1, (), "/", (b"x" * 5000, "image/jpeg"))
    point = serve.wrk(timed, server, 2, 1, tmp_path, stages=True)  # type: ignore[arg-type]
    assert point["requests"] > 0
    assert point["errors"] == {}
    assert point["engine"] == pytest.approx(0.0015)
    refused = serve.Server("x", "ours", 1, (), "/", (b"x", "text/plain"))
    point = serve.wrk(timed, refused, 1, 1, tmp_path, stages=False)  # type: ignore[arg-type]
    assert point["requests"] == 0
    assert point["errors"]["status"] > 0


def test_a_server_that_ends_at_once_is_said_to_be_broken(tmp_path: object) -> None:
    server = serve.Server("x", "ours", 1, ("sh", "-c", "echo Error: no such model; exit 3"), "/", (b"", ""))
    with (
        pytest.raises(serve.Broken, match="ended with 3: Error: no such model"),
        serve.running(server, serve.free_port(), tmp_path),  # type: ignore[arg-type]
    ):
        pass


def test_a_peer_that_is_not_installed_is_said_to_be(tmp_path: object) -> None:
    with pytest.raises(serve.Broken, match="there is no"):
        serve.peer_server("BentoML", "LITE", "ours", 1, 1, 9, tmp_path, tmp_path / "nowhere")  # type: ignore


def test_agreement_counts_what_was_found_again() -> None:
    right = Found(torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]]), torch.tensor([0.9, 0.6]), torch.tensor([1, 2]))
    assert engine.agreement([right], [right]) == 1.0
    moved = Found(right.boxes + torch.tensor([[0.0], [5.0]]), right.scores, right.labels)
    assert engine.agreement([moved], [right]) == 0.5
    relabelled = Found(right.boxes, right.scores, torch.tensor([2, 2]))
    assert engine.agreement([relabelled], [right]) == 0.5
    nothing = Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert engine.agreement([nothing], [right]) == 0.0


def test_torchvisions_parts_with_our_weights_find_the_same() -> None:
    """Else the comparison of speeds would compare two different networks."""
    images = engine.pictures(2)
    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32", canvas="exact")
    ours = [Found(one.boxes, one.scores, one.class_ids) for one in detector.detect(images)]
    theirs, stages = engine.torchvision(pairs.in_torchvision("LITE"), "cpu", "fp32").run(images)
    assert sum(len(one.boxes) for one in theirs) >= 2
    assert engine.agreement(ours, theirs) == engine.agreement(theirs, ours) == 1.0
    assert set(stages) == {"transform", "backbone", "rpn", "roi_head"}


def test_what_fails_to_run_is_a_row_that_says_why() -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no such operator\nat all")

    def answer(images: object) -> tuple[list[Found], dict[str, float]]:
        return [Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))], {}

    contenders = [engine.Contender("right", answer), engine.Contender("broken", fail)]  # type: ignore[arg-type]
    rows, peaks = engine.measure(contenders, [np.zeros((4, 4, 3), np.uint8)], 2, 0.0, "cpu")
    found = {row["name"]: row for row in rows}
    assert found["broken"]["failed"] == "RuntimeError: no such operator at all"
    assert found["right"]["seconds"]["runs"] == 2
    assert peaks["fp32"]["operations_per_s"] > 0
    assert ("bf16" in peaks) == multiplies_bf16(torch.device("cpu"))


def test_memory_that_grows_is_seen_and_filling_pools_are_not() -> None:
    flat = [(done, 900.0 if done > 300 else 500.0 + done) for done in range(20, 2001, 20)]
    growing = [(done, 900 + done / 10) for done in range(20, 2001, 20)]
    steady = memory.verdict(Counter({200: 2000}), flat, 500, 60)
    leaking = memory.verdict(Counter({200: 2000}), growing, 500, 60)
    assert steady["mib_per_1000_requests"] == 0
    assert steady["last_fifth_mib"] == steady["second_fifth_mib"]
    assert leaking["mib_per_1000_requests"] == pytest.approx(100)


def test_rounds_of_nms_are_counted_to_the_one_that_changes_nothing() -> None:
    left = torch.arange(5.0) * 5
    chain = torch.stack((left, torch.zeros(5), left + 10, torch.ones(5)), dim=1)[None]  # each overlaps its neighbours
    assert [nms_rounds.rounds(chain[:, :n], torch.ones(1, n), 0.3) for n in (1, 2, 3, 5)] == [1, 2, 3, 5]
    assert nms_rounds.rounds(chain, torch.ones(1, 5), 0.4) == 1  # 1 / 3 is not above it


def test_rounds_of_nms_are_those_of_each_batch() -> None:
    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")
    photograph = engine.pictures(1)[0]
    images = [photograph, photograph.transpose(1, 0, 2), photograph]
    before = detector.detect(images)
    found = nms_rounds.survey(detector, images, 2, [0.35, 0.05])
    assert [len(one["rounds"]) for one in found.values()] == [2, 2, 2]  # two canvases
    levels, few, many = (one["rounds"] for one in found.values())
    assert all(1 < number <= LEVEL_ITERATIONS for number in levels)
    assert all(1 <= a <= b <= CLASS_ITERATIONS for a, b in zip(few, many, strict=True))
    after = detector.detect(images)
    assert all(torch.equal(one.boxes, other.boxes) for one, other in zip(before, after, strict=True))
    assert " 2 " in nms_rounds.table(found, "Title.").markdown()
