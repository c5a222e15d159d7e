"""The model card is written by a command, and tells what the weights do."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import card, curves, unknown
from benchmarks.quality.failures import FalseDetection, failures, summary
from model.checkpoint import sha256
from model.detector import DetectOptions, Detector
from model.evaluation.operating_points import Calibration, recalibrated
from model.training.data import Dataset, Sample
from model.training.figures import figures, load_part
from service.cli.main import app

TEXT = "Mine.\n<!-- card: one -->\nold\nlines\n<!-- end -->\nMine too.\n<!-- card: two -->\n<!-- end -->\n"


def test_what_stands_between_markers_is_replaced_and_nothing_else() -> None:
    filled = card.fill(TEXT, {"one": "\nnew \\1\n", "two": "2"})
    assert filled == (
        "Mine.\n<!-- card: one -->\nnew \\1\n<!-- end -->\nMine too.\n<!-- card: two -->\n2\n<!-- end -->\n"
    )
    assert card.fill(filled, {"one": "new \\1", "two": "2"}) == filled


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("<!-- card: two -->", ""),
        TEXT + TEXT,
        TEXT + "<!-- card: three -->\n<!-- end -->\n",
        TEXT.replace("lines\n<!-- end -->", "lines"),
    ],
)
def test_markers_that_are_missing_or_repeated_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="marker"):
        card.fill(text, {"one": "1", "two": "2"})


def test_the_bundled_card_has_a_place_for_every_part(repo: Path) -> None:
    text = (repo / "weights/lite-voc20.md").read_text()
    filled = card.fill(text, dict.fromkeys(card.PARTS, "x"))
    assert filled.count("-->\nx\n<!-- end -->") == len(card.PARTS)


def test_a_table_has_three_digits_and_dashes() -> None:
    assert card.table(("a", "b"), [("x", 0.12345), (3, None)]).splitlines()[2:] == ["| x | 0.123 |", "| 3 | - |"]


def test_photographs_and_what_was_kept_stay_out_of_the_repository(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        card.outside(repo / "docs" / "sheet.jpg")
    card.outside(tmp_path / "sheet.jpg")


def test_a_cache_makes_a_thing_once(tmp_path: Path) -> None:
    made = []
    cache = card.Cache(tmp_path / "kept")
    assert [cache("it", lambda: made.append(1) or 7) for _ in range(2)] == [7, 7]
    assert made == [1]


# ------------------------------------------------------------------------------------------------------ unknown


def test_the_unknown_pictures_are_the_same_for_the_same_seed() -> None:
    first, again = unknown.drawn(0, each=3), unknown.drawn(0, each=3)
    assert [one.kind for one in first[::3]] == list(unknown.KINDS)
    assert all(np.array_equal(a.pixels, b.pixels) and a.name == b.name for a, b in zip(first, again, strict=True))
    other = unknown.drawn(1, each=3)
    assert sum(not np.array_equal(a.pixels, b.pixels) for a, b in zip(first, other, strict=True)) >= 12


def test_more_unknown_pictures_change_none_of_those_before() -> None:
    few, many = unknown.drawn(0, each=1), unknown.drawn(0, each=2)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(few, many[::2], strict=True))


def test_unknown_pictures_are_pictures() -> None:
    for one in unknown.drawn(0, each=6) + unknown.photographs():
        assert one.pixels.dtype == np.uint8
        assert one.pixels.ndim == 3
        assert one.pixels.shape[2] == 3


def test_false_detections_are_counted_by_kind() -> None:
    detector = Detector.random("LITE", classes=("__background__", "thing"), device="cpu", precision="fp32")
    pictures = unknown.drawn(0, each=1)[:2]
    everything = unknown.measure(detector, pictures, threshold=0.0)
    assert everything["kinds"]["all"]["pictures"] == 2
    assert everything["kinds"]["all"]["detections"] == sum(
        everything["kinds"][k]["detections"] for k in ("blank", "gradient")
    )
    assert everything["kinds"]["all"]["share"] == 1.0
    assert len(everything["highest"]) == 10
    assert unknown.measure(detector, pictures, threshold=1.0)["kinds"]["all"]["share"] == 0.0


# ------------------------------------------------------------------------------------------------------ failures


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    from skimage import data

    return np.asarray(data.astronaut())


def test_failures_are_told_in_words_by_the_files_name(astronaut: np.ndarray) -> None:
    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")
    (found,) = detector.detect([astronaut], DetectOptions(score_threshold=0.01, trace=True))
    classes = detector.info.classes
    assert found.labels[0] == "person"
    nobody = np.array([[300.0, 300.0, 420.0, 420.0]], np.float32)
    sample = Sample(
        path=Path("000001.jpg"),
        image_id=1,
        width=512,
        height=512,
        boxes=np.concatenate((found.boxes[:1].numpy(), nobody)),
        class_ids=np.array([classes.index("dog"), classes.index("train")]),
        ignore=np.zeros(2, bool),
        areas=np.ones(2, np.float32),
    )
    false, misses = failures(sample, found, classes, 0.5)
    person = next(one for one in false if one.score == pytest.approx(float(found.scores[0])))
    assert (person.picture, person.label, person.fault, person.other) == ("000001", "person", "other class", "dog")
    assert [one.label for one in misses] == ["dog", "train"]
    assert misses[1].part == pytest.approx(120 * 120 / 512**2)
    told = summary(false, misses, shown=1)
    assert "`000001`: person" in told["surest_false"][0]
    assert f"({misses[0].stage})" in told["largest_missed"][0]
    assert sum(told["missed"].values()) == 2


def test_a_miss_is_explained_at_the_threshold_that_it_was_missed_at(astronaut: np.ndarray) -> None:
    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")
    (found,) = detector.detect([astronaut], DetectOptions(score_threshold=0.01, trace=True))
    sample = Sample(
        path=Path("000001.jpg"),
        image_id=1,
        width=512,
        height=512,
        boxes=found.boxes[:1].numpy(),
        class_ids=found.class_ids[:1].numpy().copy(),
        ignore=np.zeros(1, bool),
        areas=np.ones(1, np.float32),
    )
    score = float(found.scores[0])
    assert failures(sample, found, detector.info.classes, score - 0.01)[1] == []
    (miss,) = failures(sample, found, detector.info.classes, score + 1e-4)[1]
    assert miss.stage == "score_threshold"


@pytest.mark.parametrize(
    ("fault", "words"),
    [("nothing", "nothing is labelled"), ("second", "second box on one cat"), ("misplaced", "too far off its cat")],
)
def test_each_fault_has_words(fault: str, words: str) -> None:
    assert words in FalseDetection("000002", "cat", 0.9, fault, "cat", 0.4).words()


# -------------------------------------------------------------------------------------------------------- curves


def test_runs_follow_one_another_and_repeated_steps_count_once() -> None:
    first = [{"step": 50, "epoch": 0.5}, {"step": 100, "epoch": 1.0, "x": 1}, {"step": 100, "epoch": 1.0, "x": 2}]
    lines = curves.runs([first, [{"step": 50, "epoch": 0.25}]])
    assert [(line["run"], line["total_epoch"]) for line in lines] == [(1, 0.5), (1, 1.0), (2, 1.25)]
    assert lines[1]["x"] == 2


# ------------------------------------------------------------------------------------------ on the real pictures


def _slice(voc20: Path, folder: Path, count: int) -> Path:
    """A folder of COCO json with the first pictures of validation, under the name ``test``."""
    part = load_part(voc20, "validation").subset(range(count))
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "test").symlink_to(voc20 / "images" / "train")
    boxes = [
        {"id": 100 * i + g, "image_id": i, "category_id": int(c), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(n)}
        for i, s in enumerate(part.samples)
        for g, ((x1, y1, x2, y2), c, n) in enumerate(zip(s.boxes.tolist(), s.class_ids, s.ignore, strict=True))
    ]
    pictures = [
        {"id": i, "file_name": s.path.name, "width": s.width, "height": s.height} for i, s in enumerate(part.samples)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(part.classes) if i]
    (folder / "test.json").write_text(json.dumps({"images": pictures, "annotations": boxes, "categories": categories}))
    return folder


@pytest.mark.data
@pytest.mark.slow
def test_evaluate_agrees_with_itself_and_nearly_in_bf16(voc20: Path, tmp_path: Path) -> None:
    # Fewer pictures, and the rank of a single detection moves an average precision by more than the bound.
    data, run = _slice(voc20, tmp_path / "few", 150), CliRunner().invoke
    exact, half = tmp_path / "fp32.json", tmp_path / "bf16.json"
    command = ["evaluate", "--data", str(data), "--device", "cpu"]
    done = run(app, [*command, "--precision", "fp32", "--json", str(exact)])
    assert done.exit_code == 0, done.output
    assert "at its default, F1" in done.output
    again = run(app, [*command, "--precision", "fp32", "--against", str(exact)])
    assert again.exit_code == 0, again.output
    assert "ap50 +0.0000" in again.output
    assert run(app, [*command, "--precision", "bf16", "--json", str(half)]).exit_code == 0
    one, other = json.loads(exact.read_text()), json.loads(half.read_text())
    assert (one["precision"], other["precision"]) == ("fp32", "bf16")
    for name in ("ap50", "ap", "ap75", "ar100"):
        assert other[name] == pytest.approx(one[name], abs=0.05)
    exact.write_text(json.dumps(one | {"ap50": one["ap50"] - 0.002}))
    off = run(app, [*command, "--precision", "fp32", "--against", str(exact)])
    assert off.exit_code == 1
    assert "0.1 points" in off.output + (off.stderr or "")


@pytest.mark.data
@pytest.mark.slow
def test_one_command_writes_the_card(voc20: Path, repo: Path, tmp_path: Path) -> None:
    text = (repo / "weights/lite-voc20.md").read_text()
    (tmp_path / "card.md").write_text(card.fill(text, dict.fromkeys(card.PARTS, "")))
    places = ["--card", str(tmp_path / "card.md"), "--results", str(tmp_path), "--images", str(tmp_path)]
    card.main(["--data", str(voc20), "--first", "4", "--speed", "1", *places])
    written = (tmp_path / "card.md").read_text()
    assert not re.search(r"-->\n\n?<!-- end -->", written)
    assert json.loads((tmp_path / "lite-voc20-test.json").read_text())["pictures"] == 4
    assert (tmp_path / "lite-scores.svg").stat().st_size > 1000
    # Outside the markers it is the same.
    assert card.fill(written, dict.fromkeys(card.PARTS, "")) == card.fill(text, dict.fromkeys(card.PARTS, ""))


@pytest.mark.data
@pytest.mark.slow
def test_what_is_folded_into_the_weights_is_what_the_scores_become(voc20: Path, tmp_path: Path) -> None:
    file, numbers = tmp_path / "folded.safetensors", ["--temperature", "2", "--background", "0.5"]
    card.main(["--data", str(voc20), "--first", "4", "--fold", str(file), *numbers, "--results", str(tmp_path)])
    picture = load_part(voc20, "validation").load(0)
    options = DetectOptions(score_threshold=0.01, trace=True)
    (before,) = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32").detect([picture], options)
    (after,) = Detector.from_checkpoint(file, device="cpu", precision="fp32").detect([picture], options)
    assert before.trace is not None
    assert after.trace is not None
    correction = Calibration(2.0, 0.5)
    expected = recalibrated(before.trace.scores.numpy(), correction)
    assert after.trace.scores.numpy() == pytest.approx(expected, abs=2e-3)  # the file's float16
    assert card.folded_into(sha256(file), tmp_path) == correction
    assert card.folded_into("another", tmp_path) == Calibration()


def test_figures_of_other_pictures_are_no_measure() -> None:
    detector = Detector.random("LITE", classes=("__background__", "cat"), device="cpu", precision="fp32")
    sample = Sample(
        path=Path("a.jpg"),
        image_id="a",
        width=10,
        height=10,
        boxes=np.array([[1, 1, 9, 9]], np.float32),
        class_ids=np.array([1]),
        ignore=np.array([False]),
        areas=np.array([64], np.float32),
    )
    dataset = Dataset((sample,), ("__background__", "cat"))
    result = figures(detector.info, [("a", sample.boxes, [0.9], [1])], dataset, "mine", "test")
    written = json.loads(json.dumps(result.to_dict()))
    assert {name: here - there for name, here, there in result.differences(written)} == {
        "ap50": 0,
        "ap": 0,
        "ap75": 0,
        "ar100": 0,
        "ap50 of cat": 0,
    }
    with pytest.raises(ValueError, match="those figures are of"):
        list(result.differences(written | {"pictures": 2}))
    with pytest.raises(ValueError, match="no figures of an evaluation"):
        list(result.differences({"data": "mine"}))
