"""The command, run once on a CPU with tiny sizes."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from benchmarks.gpu import tables
from benchmarks.gpu.section import Data
from benchmarks.lib.contenders import BASE
from benchmarks.lib.results import ROOT


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Return what the command writes; it must end well."""
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--train", "--revision", "abc1234"]
    run = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "| section | measured | result | compared with |" in run.stdout
    [path] = out.glob("gpu-*.json")
    result: Data = json.loads(path.read_text())
    return result


def numbers(value: Any) -> Iterator[float]:
    """Yield every number within."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, (int, float)):
        yield value


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
    point = points["LITE 384 x 480, 1 at once"]
    assert 4 < point["gflop"] < 8
    assert point["kernels"] == 0
    assert point["idle_share"] is None


def test_the_table_says_on_which_card(result: Data) -> None:
    [table] = tables({"gpu-x": result})
    assert table.title.startswith("No GPU: ")
    assert f"torch {torch.__version__.partition('+')[0]}" in table.title
    assert "commit abc1234" in table.title
    parts = {row[0] for row in table.rows}
    assert parts == set(result["sections"])
    assert all(len(row) == len(table.columns) for row in table.rows)


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
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
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


def test_the_command_needs_no_package_of_the_service() -> None:
    packages = "fastapi starlette uvicorn orjson pydantic httpx rich psutil matplotlib skimage typer prometheus_client"
    code = """
import importlib.abc, runpy, sys
packages = sys.argv[1:]
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in packages:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
sys.argv = "benchmarks.gpu --device cpu --tiny --sections facts agreement memory".split()
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
    command = [sys.executable, "-c", code, *packages.split()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
