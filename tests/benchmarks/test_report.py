"""The page shows what is committed, and names commands and documents that exist."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.lib import results


def test_the_page_shows_the_results_that_are_committed() -> None:
    page = report.PAGE.read_text()
    assert report.fill(page) == page, "run python -m benchmarks.report"


def test_every_result_is_in_the_list_of_files() -> None:
    listed = {cell for row in report.files() for cell in re.findall(r"results/(\S+)\)", row[0])}
    assert listed == {path.name for path in results.RESULTS.glob("*.json")}


def test_every_command_and_document_on_the_page_exists(repo: Path) -> None:
    commands = [cell for row in (*report.rows(), *report.files()) for cell in row if cell.startswith("`python -m ")]
    assert len(commands) > 30
    for command in commands:
        assert importlib.util.find_spec(command.strip("`").split()[2]) is not None, command
    for document in {result.document for result in report.RESULTS if result.document}:
        assert (repo / "docs" / document).exists()


@pytest.mark.parametrize("name", [result.name for result in report.RESULTS if result.module])
def test_every_result_of_a_benchmark_has_tables(name: str) -> None:
    for table in report.tables(name):
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_row_has_a_ratio_to_torchvision_on_the_same_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = {"processor": "X (avx2, avx512f)", "cores": 2, "date": "2026-01-02T03:04:05"}
    measured = {"torchvision fp32": 0.4, "OpenVINO fp32": 0.3, "ours fp32": 0.25, "ours fp32, Winograd": 0.2}
    rows = [{"name": name, "seconds": {"median": median}} for name, median in measured.items()]
    point = {"preset": "LITE", "batch": 1, "canvas": [384, 480], "machine": machine, "rows": rows}
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.save("engine", {"points": {"LITE/1": point, "LITE/2": point | {"batch": 2}}})
    assert list(report.rows()) == [
        (
            "LITE at 384 x 480, fp32: ms per image",
            "200",
            "400 (2.00x)",
            "OpenVINO fp32 300 (1.50x)",
            "X with avx512f, 2 cores, 2026-01-02",
            "`python -m benchmarks.engine.compare --presets LITE --batches 1`",
        )
    ]


def test_each_run_on_a_gpu_has_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rates = {"ours fp16": 50.0, "torchvision fp16 autocast, channels_last": 25.0}
    rows = [{"name": name, "images_per_s": rate} for name, rate in rates.items()]
    speed = {"points": {"LITE 384 x 480, 8 at once": {"rows": rows}, "late": {"status": "not measured"}}}
    facts = {"points": {"machine": {"card": "Card"}}}
    run = {"date": "2026-01-02T03", "command": "python -m benchmarks.gpu", "sections": {"facts": facts, "speed": speed}}
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for name in ("gpu-a", "gpu-b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(run))
    row = ("LITE 384 x 480, batch 8, fp16: images/s", "50.0", "25.0 (2.00x)", "", "Card, 2026-01-02")
    assert [cells[:5] for cells in report.rows()] == [row, row]
