from pathlib import Path

import pytest

from benchmarks.lib import results


def test_a_table_is_the_same_rows_in_a_document() -> None:
    table = results.Table("Title.", ("detector", "ms"), [("a|b", "1.0")])
    assert table.markdown() == "\nTitle.\n\n| detector | ms |\n| --- | ---: |\n| a/b | 1.0 |\n\n"


def test_what_is_saved_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    assert results.load("x") == {}
    results.save("x", {"value": 1})
    assert results.load("x") == {"value": 1}
    assert [path.name for path in results.RESULTS.iterdir()] == ["x.json"]


def test_a_spread_is_formatted_in_milliseconds() -> None:
    assert results.format_milliseconds(results.spread([0.0123, 0.02, 0.01])) == "12.3 (10.0 to 20.0)"
    assert results.format_milliseconds(results.spread([1.5, 2])) == "1,750 (1,500 to 2,000)"
