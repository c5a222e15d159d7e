"""The benchmark for a GPU: run once on a CPU with tiny sizes; and that no part of it can stop the others."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import report
from benchmarks.gpu import agreement, device, speed, suite, tables, trace
from benchmarks.gpu.contenders import BASE, Contender, Found
from benchmarks.gpu.images import image, size_for
from benchmarks.gpu.run import Run, forked
from benchmarks.gpu.section import LOST, OUT_OF_TIME, Data, Point, Section, Skipped, failures
from benchmarks.gpu.settings import Settings
from model.config import LITE, RESNET50_FPN
from model.runtime.buckets import Canvases

TINY = Settings(device="cpu", tiny=True)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """What the command writes; it must end well."""
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--train", "--revision", "abc1234"]
    run = subprocess.run(
        [*command, "--out", str(out)], cwd=report.ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "| part | what | result | beside it |" in run.stdout
    [path] = out.glob("gpu-*.json")
    found: Data = json.loads(path.read_text())
    return found


def numbers(found: Any) -> Iterator[float]:
    """Every number within."""
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, list):
        for value in found:
            yield from numbers(value)
    elif isinstance(found, (int, float)):
        yield found


def test_every_section_has_measured_what_a_cpu_can(result: Data) -> None:
    assert list(result["sections"]) == ["facts", "tests", "agreement", "speed", "profile", "memory", "training"]
    assert result["failures"] == []
    assert result["revision"] == "abc1234"
    for name, section in result["sections"].items():
        statuses = {point["status"] for point in section["points"].values()}
        assert statuses == {"measured"} or (name in ("tests", "agreement") and statuses <= {"measured", "skipped"})
    assert all(math.isfinite(number) for number in numbers(result))


def test_times_are_those_of_real_calls(result: Data) -> None:
    points = result["sections"]["speed"]["points"]
    assert list(points) == ["LITE 384 x 480, 1 at once", "LITE 384 x 480, 2 at once"]
    first = points["LITE 384 x 480, 1 at once"]["rows"]
    assert [row["name"] for row in first] == ["ours fp32", BASE]
    for point in points.values():
        for row in point["rows"]:
            assert 0 < row["min_ms"] <= row["median_ms"] <= row["p90_ms"] <= row["max_ms"]
            assert row["images_per_s"] == pytest.approx(point["batch"] * 1000 / row["median_ms"])
    assert first[0]["to_base"] == pytest.approx(first[1]["median_ms"] / first[0]["median_ms"])
    assert sum(first[0]["stages_ms"].values()) <= first[0]["max_ms"]


def test_the_answers_are_compared_and_are_the_same(result: Data) -> None:
    points = result["sections"]["agreement"]["points"]
    assert points["self-test, lite-voc20, fp32"]["status"] == "measured"
    assert points["self-test, lite-voc20, fp16"]["why"].startswith("not offered: precision fp16")
    rows = points["LITE"]["rows"]
    assert points["LITE"]["detections"] >= 3
    assert rows[0]["matched"] == points["LITE"]["detections"]
    assert rows[0]["only_here"] == rows[0]["only_there"] == 0
    assert rows[-1]["name"] == "cpu fp32 beside torchvision there"
    assert rows[-1]["matched"] > 0


def test_the_profile_has_a_peak_and_a_share_of_it(result: Data) -> None:
    points = result["sections"]["profile"]["points"]
    assert points["peaks"]["products"]["fp32"]["tflops"] > 0
    assert points["peaks"]["copy_gb_per_s"] > 0
    found = points["LITE 384 x 480, 1 at once"]
    assert 4 < found["gflop"] < 8
    assert found["kernels"] == 0
    assert found["idle_share"] is None


def test_the_page_says_on_which_card(result: Data) -> None:
    [table] = tables({"gpu-x": result})
    assert table.title.startswith("No GPU: ")
    assert f"torch {torch.__version__.partition('+')[0]}" in table.title
    assert "commit abc1234" in table.title
    parts = {row[0] for row in table.rows}
    assert parts == set(result["sections"])
    assert all(len(row) == len(table.head) for row in table.rows)


def test_the_page_has_a_table_for_each_file(result: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hole = "<!-- made: gpu -->\n<!-- end -->\n"
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "Not measured yet." in report.filled(hole)
    for card in ("a", "b"):
        (tmp_path / f"gpu-{card}-2026-11-28.json").write_text(json.dumps(result))
    page = report.filled(hole)
    assert page.count("| part | what | result | beside it |") == 2
    assert page.count("speed | LITE 384 x 480, 1 at once: ours fp32 |") == 2


# ---------------------------------------------------------------------------------------- nothing stops the others
def run_of(tmp_path: Path, *sections: Section, limit: float = 60.0) -> tuple[Run, Data]:
    run = Run(Settings(device="cpu", out=tmp_path, limit=limit), sections)
    return run, run.all()


def section(name: str, *points: Point, share: float = 0.5) -> Section:
    return Section(name, lambda _: list(points), share=share)


def broken(_: float) -> Data:
    raise RuntimeError("no such kernel")


def good(_: float) -> Data:
    return {"value": 1.5}


def dying(_: float) -> Data:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def skipped(_: float) -> Data:
    raise Skipped("there is none")


@forks
def test_a_point_that_raises_or_dies_is_recorded_and_the_rest_runs(tmp_path: Path) -> None:
    first = section("a", Point("broken", broken), Point("dying", dying), Point("skipped", skipped), Point("good", good))
    run, found = run_of(tmp_path, first, section("b", Point("good", good)))
    points = found["sections"]["a"]["points"]
    assert list(points) == ["broken", "dying", "skipped", "good"]
    assert points["broken"]["error"].endswith("RuntimeError: no such kernel")
    assert "SIGKILL" in points["dying"]["error"]
    assert points["skipped"]["why"] == "there is none"
    assert points["good"]["value"] == found["sections"]["b"]["points"]["good"]["value"] == 1.5
    assert [failure["where"] for failure in found["failures"]] == ["a/points/broken", "a/points/dying"]
    assert json.loads(run.path.read_text()) == found
    [table] = tables({"gpu-x": found | {"sections": {"other": found["sections"]["a"]}}})
    assert ("other", "broken", "FAILED: RuntimeError: no such kernel", "") in list(table.rows)


@forks
def test_a_section_that_cannot_say_its_points_is_a_failure(tmp_path: Path) -> None:
    def none(_: Settings) -> list[Point]:
        raise ImportError("no module")

    _, found = run_of(tmp_path, Section("a", none), section("b", Point("good", good)))
    assert found["sections"]["a"]["points"]["points"]["error"].endswith("ImportError: no module")
    assert found["sections"]["b"]["points"]["good"]["status"] == "measured"


@forks
def test_a_gpu_that_is_lost_is_lost_to_one_point_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.section._answers", lambda: False)

    def whose(_: float) -> Data:
        return {"process": os.getpid()}

    points = section("a", Point("first", whose), Point("broken", broken), Point("next", whose))
    found = Run(Settings(device="cuda", out=tmp_path, limit=60), [points]).all()["sections"]["a"]["points"]
    assert found["broken"]["error"].endswith("RuntimeError: no such kernel")
    assert found["next"]["process"] != found["first"]["process"]


def test_switches_are_set_back() -> None:
    before = device.switches()
    with device.tf32(True):
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        with device.tf32(False):
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    assert device.switches() == before


def test_nothing_that_is_imported_or_planned_touches_the_gpu() -> None:
    """A forked process cannot use a GPU that its parent has used."""
    code = """
import torch
def touched(*_, **__): raise SystemExit("touched")
torch._C._cuda_getDeviceCount = torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = touched
from benchmarks.gpu.__main__ import SECTIONS, serving, training
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.run import Run
for section in (*SECTIONS, training.SECTION, serving.SECTION):
    print(section.name, len(section.points(Settings())))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=report.ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    counts = dict(line.split() for line in run.stdout.splitlines())
    assert {name: int(count) for name, count in counts.items()} == {
        "facts": 1,
        "tests": 1,
        "agreement": 11,
        "speed": 21,
        "profile": 5,
        "memory": 12,
        "training": 4,
        "http": 2,
    }


@forks
def test_the_limit_is_kept_by_a_point_that_hangs(tmp_path: Path) -> None:
    def hanging(_: float) -> Data:
        time.sleep(600)
        return {}

    begun = time.monotonic()
    hung = section("a", Point("good", good), Point("hanging", hanging), Point("late", good))
    _, found = run_of(tmp_path, hung, section("b", Point("good", good), share=1.0), limit=4.0)
    assert time.monotonic() - begun < 60
    points = found["sections"]["a"]["points"]
    assert points["good"]["status"] == "measured"
    assert "was stopped" in points["hanging"]["error"]
    assert points["late"]["status"] == OUT_OF_TIME
    assert found["sections"]["b"]["points"]["good"]["status"] == "measured"


@forks
def test_a_section_without_time_measures_nothing(tmp_path: Path) -> None:
    _, found = run_of(tmp_path, section("a", Point("good", good), share=0.0))
    assert found["sections"]["a"]["points"] == {"good": {"status": OUT_OF_TIME}}
    assert found["failures"] == []


@forks
def test_how_a_process_ended_is_told() -> None:
    assert forked(lambda: 0, 30) == ""
    assert forked(lambda: LOST, 30) == "lost the GPU"
    assert forked(lambda: 3, 30) == "ended with 3"


def test_a_contender_that_raises_is_out_and_the_others_go_on() -> None:
    calls = []

    def answer(images: Any) -> list[Found]:
        calls.append(len(images))
        return [Found(torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([0.9]), torch.tensor([1])) for _ in images]

    def fail(_: Any) -> list[Found]:
        raise RuntimeError("out of memory")

    def fail_later(images: Any) -> list[Found]:
        calls.append(0)
        if calls.count(0) > 2:
            raise RuntimeError("too late")
        return answer(images)

    everybody = {
        name: Contender(name, detect, device.switches(), 0.0)
        for name, detect in ((BASE, answer), ("ours fp32", answer), ("ours fp16", fail), ("ours bf16", fail_later))
    }
    rows = speed.race(everybody, [image(8, 8)], time.monotonic() + 0.5, TINY)
    assert rows["ours fp16"]["error"].endswith("out of memory")
    assert rows["ours bf16"]["error"].endswith("too late")
    assert rows[BASE]["to_base"] == 1
    assert rows["ours fp32"]["beside_base"]["matched"] == 1
    assert {where for where, _ in failures(list(rows.values()))} == {"/ours fp16", "/ours bf16"}


# --------------------------------------------------------------------------------------------- what is read and made
def test_a_trace_is_read_rightly() -> None:
    def event(cat: str, name: str, ts: float, dur: float) -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [
        event("kernel", "before", 0, 50),
        event("user_annotation", trace.CALL, 100, 500),
        event("gpu_user_annotation", trace.CALL, 90, 900),
        event("user_annotation", trace.CALL, 600, 500),
        event("cuda_runtime", "cudaLaunchKernel", 110, 5),
        event("cuda_runtime", "cudaGraphLaunch", 120, 5),
        event("cuda_driver", "cuLaunchKernelEx", 130, 5),
        event("cuda_runtime", "cudaMemcpyAsync", 140, 5),
        event("cuda_runtime", "cudaStreamSynchronize", 150, 5),
        event("kernel", "conv", 200, 100),
        event("kernel", "conv", 250, 100),  # beside the other on another stream
        event("kernel", "nms", 700, 50),
        event("gpu_memcpy", "Memcpy DtoH", 800, 50),
        {"ph": "M", "name": "process_name"},
    ]
    found = trace.figures(events, calls=2)
    assert found["kernels"] == 1.5
    assert found["launches"] == 1.5
    assert found["graph_launches"] == found["waits"] == found["copies"] == 0.5
    assert found["span_ms"] == 0.5
    assert found["busy_ms"] == pytest.approx(0.125)
    assert found["idle_share"] == pytest.approx(0.75)
    assert [kernel["name"] for kernel in found["top_kernels"]] == ["conv", "nms"]
    assert found["top_kernels"][0]["share"] == pytest.approx(0.8)


def test_answers_are_paired_by_class_place_and_score() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    right = Found(boxes, torch.tensor([0.9, 0.6, 0.5]), torch.tensor([1, 2, 3]))
    near = Found(boxes + torch.tensor([[0.5], [0.0], [0.0]]), torch.tensor([0.88, 0.6, 0.1]), torch.tensor([1, 1, 3]))
    found = agreement.compare([near], [right])
    assert (found["matched"], found["only_here"], found["only_there"]) == (1, 2, 2)
    assert found["box_px"] == 0.5
    assert found["score"] == pytest.approx(0.02)
    assert agreement.judged(found, agreement.Limit(1, 0.1, 0.9)).get("status") is None
    assert agreement.judged(found, agreement.Limit(0.4, 0.1, 0.9))["error"] == "over the limit: box_px 0.5 (limit 0.4)"
    broken = Found(boxes * math.nan, right.scores, right.labels)
    with pytest.raises(AssertionError, match="not finite"):
        agreement.compare([broken], [right])


def test_nothing_found_on_either_side_is_no_agreement() -> None:
    nothing = Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert agreement.judged(agreement.compare([nothing], [nothing]), agreement.Limit(1, 1, 0.5))["status"] == "failed"


@pytest.mark.parametrize(
    ("config", "canvas"), [(RESNET50_FPN, (800, 1088)), (RESNET50_FPN, (800, 1344)), (LITE, (384, 480))]
)
def test_images_are_of_exactly_the_canvas_that_is_named(config: Any, canvas: tuple[int, int]) -> None:
    height, width = size_for(canvas, Canvases(config.transform).of)
    assert Canvases(config.transform).of(height, width) == canvas
    assert Canvases(config.transform, "exact").of(height, width) == canvas  # as torchvision pads it
    assert np.array_equal(image(height, width, 1), image(height, width, 1))
    assert image(height, width, 1).std() > 20


def test_pytests_last_line_is_counted() -> None:
    said = (
        "....\nFAILED tests/gpu/test_x.py::test_y - in 3.0s\n=== 1 failed, 12 passed, 2 skipped, 1 error in 34.5s ==="
    )
    assert suite.counts(said) == {"failed": 1, "passed": 12, "skipped": 2, "error": 1}
    assert suite.counts("nothing") == {}


def test_a_command_that_hangs_is_stopped() -> None:
    code, said = suite.output([sys.executable, "-uc", "print('begun'); import time; time.sleep(600)"], 3)
    assert code is None
    assert said == "begun\n"
