"""The model card is written by a command, and says what the weights do."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.quality import card, card_text
from model.checkpoint import sha256
from model.detector import DetectOptions, Detector
from model.evaluation.report import load_split
from model.evaluation.temperature_scaling import TemperatureScaling, scale_distributions


def test_the_bundled_card_has_a_place_for_every_part(repo: Path) -> None:
    text = (repo / "weights/lite-voc20.md").read_text()
    filled = card.fill_card(text, dict.fromkeys(card_text.PARTS, "x"))
    assert filled.count("-->\nx\n<!-- end -->") == len(card_text.PARTS)


def test_a_table_has_three_digits_and_dashes() -> None:
    assert card_text.table(("a", "b"), [("x", 0.12345), (3, None)]).splitlines()[2:] == ["| x | 0.123 |", "| 3 | - |"]


def test_photographs_and_caches_stay_out_of_the_repository(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        card.outside(repo / "docs" / "sheet.jpg")
    card.outside(tmp_path / "sheet.jpg")


def test_a_cache_makes_a_thing_once(tmp_path: Path) -> None:
    calls = []
    cache = card.Cache(tmp_path / "kept")
    assert [cache("it", lambda: calls.append(1) or 7) for _ in range(2)] == [7, 7]
    assert calls == [1]


@pytest.mark.data
@pytest.mark.slow
def test_one_command_writes_the_card(voc20: Path, repo: Path, tmp_path: Path) -> None:
    text = (repo / "weights/lite-voc20.md").read_text()
    (tmp_path / "card.md").write_text(card.fill_card(text, dict.fromkeys(card_text.PARTS, "")))
    places = ["--card", str(tmp_path / "card.md"), "--results", str(tmp_path), "--images", str(tmp_path)]
    card.main(["--data", str(voc20), "--first", "4", "--speed", "1", *places])
    written = (tmp_path / "card.md").read_text()
    assert not re.search(r"-->\n\n?<!-- end -->", written)
    assert json.loads((tmp_path / "lite-voc20-test.json").read_text())["images"] == 4
    assert (tmp_path / "lite-scores.svg").stat().st_size > 1000
    # Outside the markers it is the same.
    empty = dict.fromkeys(card_text.PARTS, "")
    assert card.fill_card(written, empty) == card.fill_card(text, empty)


@pytest.mark.data
@pytest.mark.slow
def test_what_is_folded_into_the_weights_is_what_the_scores_become(voc20: Path, tmp_path: Path) -> None:
    file, numbers = tmp_path / "folded.safetensors", ["--temperature", "2", "--background", "0.5"]
    card.main(["--data", str(voc20), "--first", "4", "--fold", str(file), *numbers, "--results", str(tmp_path)])
    image = load_split(voc20, "validation").load(0)
    options = DetectOptions(score_threshold=0.01, trace=True)
    (before,) = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32").detect([image], options)
    (after,) = Detector.from_checkpoint(file, device="cpu", precision="fp32").detect([image], options)
    assert before.trace is not None
    assert after.trace is not None
    correction = TemperatureScaling(2.0, 0.5)
    expected = scale_distributions(before.trace.scores.numpy(), correction)
    assert after.trace.scores.numpy() == pytest.approx(expected, abs=2e-3)  # the file's float16
    assert card.folded_into(sha256(file), tmp_path) == correction
    assert card.folded_into("another", tmp_path) == TemperatureScaling()
