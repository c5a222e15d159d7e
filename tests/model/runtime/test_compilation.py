"""From an eager engine to a compiled one: only what agrees and is faster takes over, and whatever fails is said."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import ResolvedCheckpoint
from model.config import LITE, PRESETS, DetectorConfig
from model.detector import Detector
from model.faster_rcnn import FasterRCNN
from model.ops import map_shapes
from model.runtime import compilation, winograd
from model.runtime.compilation import CompiledEngine
from model.runtime.engine import EagerEngine
from model.runtime.parts import DensePart, level_shapes
from model.structures import DetectOptions

CLASSES = ("__background__", "circle", "square")
TINY = replace(LITE, transform=replace(LITE.transform, min_size=128, max_size=128)).with_classes(3)


def _detector(config: DetectorConfig = TINY, **options: str) -> Detector:
    torch.manual_seed(0)
    checkpoint = ResolvedCheckpoint(name="tiny", path=Path("nowhere"), preset=config.name, classes=CLASSES)
    settings = {"device": "cpu", "precision": "fp32"} | options
    return Detector(FasterRCNN(config), checkpoint, **settings)  # type: ignore[arg-type]


def _picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("FRCNN_CACHE_DIR", str(tmp_path))
    return tmp_path / "compiled"


def _stand_in(monkeypatch: pytest.MonkeyPatch, wrong: float = 0.0, delay: float = 0.0) -> None:
    """In place of the compiler's library, the part itself: off by ``wrong``, and slower by ``delay`` seconds."""

    class StandIn:
        part: DensePart

        def __init__(self, path: Path, device: torch.device) -> None:
            assert path.read_bytes() == b"library"

        def __call__(self, pixels: Tensor) -> Sequence[Tensor]:
            time.sleep(delay)
            table, logits, deltas = StandIn.part(pixels)
            return table * (1 + wrong), logits, deltas

    def compile(self: compilation.Compilation, job: compilation.Job) -> None:
        StandIn.part = DensePart(self.model, self.eager.dtype)
        (job.folder / "dense.so").write_bytes(b"library")

    monkeypatch.setattr(compilation, "Library", StandIn)
    monkeypatch.setattr(compilation.Compilation, "_compile", compile)


def _race(monkeypatch: pytest.MonkeyPatch, eager: float, compiled: float) -> None:
    monkeypatch.setattr(compilation.Compilation, "_race", lambda *_: (eager, compiled))


def test_off_is_off(place: Path) -> None:
    detector = _detector(compile="off")
    detector.warm_up()
    assert (detector.info.engine, detector.info.engine_note) == ("eager", "Eager: compiling is off.")
    assert not place.exists()


def test_the_environment_turns_auto_off(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRCNN_COMPILE", "off")
    assert _detector(compile="auto").info.engine_note == "Eager: compiling is off."


def test_what_agrees_and_is_faster_takes_over(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch)
    _race(monkeypatch, 0.02, 0.01)
    detector = _detector(compile="wait")
    assert detector.info.engine == "compiled"
    assert detector.info.engine_note.startswith(
        "Compiled: 10.0 ms against 20.0 ms eager for the network on 96x128; made"
    )
    assert "from the cache" in _detector(compile="wait").info.engine_note


def test_what_is_slower_does_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch, delay=0.2)
    detector = _detector(compile="wait")
    assert detector.info.engine == "eager"
    assert "no faster here" in detector.info.engine_note


@pytest.mark.parametrize(("compiled", "engine"), [(0.01, "compiled"), (0.03, "eager")])
def test_the_race_is_run_once_for_a_library(
    compiled: float, engine: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(monkeypatch)
    _race(monkeypatch, 0.02, compiled)
    first = _detector(compile="wait")
    monkeypatch.setattr(compilation.Compilation, "_race", lambda *_: pytest.fail("a second race"))
    second = _detector(compile="wait")
    assert [one.info.engine for one in (first, second)] == [engine, engine]
    assert "20.0 ms eager for the network on 96x128" in second.info.engine_note
    assert ("timed at an earlier start" in second.info.engine_note) == (engine == "eager")


def test_a_note_that_cannot_be_read_means_another_race(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch)
    _race(monkeypatch, 0.02, 0.01)
    _detector(compile="wait")
    (note,) = place.glob("*/race-96x128-winograd-0.json")
    for words in ("", "[1, 2]", '{"eager": 0.02}', '{"eager": "?", "compiled": 1}'):
        note.write_text(words)
        _race(monkeypatch, 0.02, 0.04)
        assert "40.0 ms against 20.0 ms" in _detector(compile="wait").info.engine_note


def test_it_is_run_again_where_the_eager_engine_convolves_otherwise(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stand_in(monkeypatch)
    _race(monkeypatch, 0.02, 0.01)
    assert _detector(compile="wait").info.engine == "compiled"
    monkeypatch.setattr(winograd, "_WIDE", 128)
    monkeypatch.setattr(winograd, "_seconds", lambda conv: float(not isinstance(conv, winograd.WinogradConv2d)))
    _race(monkeypatch, 0.005, 0.01)
    assert "10.0 ms against 5.0 ms eager" in _detector(compile="wait").info.engine_note


def test_what_was_faster_once_still_has_to_agree(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand_in(monkeypatch)
    _race(monkeypatch, 0.02, 0.01)
    assert _detector(compile="wait").info.engine == "compiled"
    monkeypatch.setattr(compilation, "_distance", lambda *_: 0.5)
    assert "differs by 0.5" in _detector(compile="wait").info.engine_note


def test_what_answers_otherwise_does_not(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _stand_in(monkeypatch, wrong=0.01)
    with caplog.at_level(logging.WARNING, "frcnn.engine"):
        detector = _detector(compile="wait")
    assert detector.info.engine == "eager"
    assert "differs by 0.01 of its size, and may by 0.0001" in detector.info.engine_note
    assert [record.message for record in caplog.records] == ["the engine stays eager"]


def test_without_a_compiler_it_stays_eager_and_says_so_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING, "frcnn.engine"):
        detector = _detector(compile="wait")
        detector.warm_up()
    assert detector.info.engine == "eager"
    assert detector.info.engine_note == "Eager: there is no C++ compiler (no-such-compiler) to compile with."
    assert len(caplog.records) == 1
    assert detector.detect([_picture()])


def test_a_compiler_that_fails_leaves_its_last_word(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "python"
    child.write_text("#!/bin/sh\necho begun >&2\necho no space left >&2\nexit 3\n")
    child.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(child))
    detector = _detector(compile="wait")
    assert detector.info.engine_note == "Eager: compiling failed with code 3 (no space left)."
    assert list(place.iterdir()) == []


def test_a_folder_that_others_may_write_to_is_not_used(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    note = _detector(compile="wait").info.engine_note
    assert note.startswith("Eager: The cache folder")
    assert "others may write to it" in note


def test_a_file_that_does_not_load_is_thrown_away(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        compilation.Compilation, "_compile", lambda _, job: (job.folder / "dense.so").write_bytes(b"no library")
    )
    assert "cannot be loaded" in _detector(compile="wait").info.engine_note
    assert list(place.iterdir()) == []


def _compiled(detector: Detector) -> CompiledEngine:
    assert isinstance(detector.engine, EagerEngine)
    return CompiledEngine(detector.model, DensePart(detector.model, detector.dtype), detector.engine)


def test_both_engines_give_the_same_answers() -> None:
    eager, compiled = _detector(), _detector()
    compiled.engine = _compiled(compiled)
    pictures = [_picture(seed) for seed in range(3)]
    options = [DetectOptions(proposals=10), DetectOptions(trace=True), DetectOptions()]
    regions = [None, None, [[10.0, 10.0, 80.0, 80.0]]]
    for a, b in zip(eager.detect(pictures, options, regions), compiled.detect(pictures, options, regions), strict=True):
        assert a.class_ids.tolist() == b.class_ids.tolist()
        torch.testing.assert_close(a.boxes, b.boxes, atol=1e-2, rtol=0)
        torch.testing.assert_close(a.scores, b.scores, atol=1e-4, rtol=0)
        assert (a.proposals is None) == (b.proposals is None)
        assert (a.trace is None) == (b.trace is None)


def test_a_canvas_of_a_single_row_of_cells_stays_eager() -> None:
    detector = _detector(canvas="exact")
    eager = detector.engine
    detector.engine = CompiledEngine(detector.model, lambda _: pytest.fail("it was compiled for larger ones"), eager)  # type: ignore[arg-type]
    thin = np.zeros((10, 120, 3), np.uint8)
    assert detector.canvas_for(*thin.shape[:2])[0] == 32
    detector.detect([thin])


@pytest.mark.parametrize("config", PRESETS, ids=lambda config: config.name)
def test_the_maps_sizes_are_known_beforehand(config: DetectorConfig) -> None:
    stride = config.transform.stride
    with torch.device("meta"):
        model = FasterRCNN(config)
        for rows, columns in ((2, 3), (5, 7), (8, 8)):
            canvas = (rows * stride, columns * stride)
            assert level_shapes(model, canvas) == map_shapes(model.backbone(torch.empty(1, 3, *canvas)))


@pytest.mark.slow
def test_a_real_library_for_every_canvas_and_batch(place: Path) -> None:
    """Compiles a small network, minutes on a slow machine; then a second detector loads it."""
    eager = _detector(precision="auto")  # in what this processor multiplies fastest
    detector = _detector(precision="auto", compile="wait")
    # Whether it is faster the machine decides; that it was made and agrees, the test.
    assert detector.info.engine == "compiled" or "no faster here" in detector.info.engine_note
    file = next(place.glob("*/dense.so"))
    library = compilation.Library(file, torch.device("cpu"))
    for canvas, batch in (((96, 128), 1), ((128, 64), 3), ((128, 128), 2)):
        pixels = torch.randn(batch, 3, *canvas).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            expected = DensePart(eager.model, eager.dtype)(pixels)
            for a, b in zip(expected, library(pixels), strict=True):
                assert a.shape == b.shape
                assert float((a - b).float().square().mean() / a.float().square().mean()) ** 0.5 < 0.05
    again = _detector(precision="auto", compile="wait")
    assert "from the cache" in again.info.engine_note or "no faster here" in again.info.engine_note
