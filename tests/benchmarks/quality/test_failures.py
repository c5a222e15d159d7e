from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.failures import FalseDetection, failures, summary
from model.data import Sample
from model.detector import DetectOptions, Detector


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    from skimage import data

    return np.asarray(data.astronaut())


def test_failures_are_described_by_the_files_name(astronaut: np.ndarray) -> None:
    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")
    (detections,) = detector.detect([astronaut], DetectOptions(score_threshold=0.01, trace=True))
    classes = detector.info.classes
    assert detections.labels[0] == "person"
    nobody = np.array([[300.0, 300.0, 420.0, 420.0]], np.float32)
    sample = Sample(
        path=Path("000001.jpg"),
        image_id=1,
        width=512,
        height=512,
        boxes=np.concatenate((detections.boxes[:1].numpy(), nobody)),
        class_ids=np.array([classes.index("dog"), classes.index("train")]),
        ignore=np.zeros(2, bool),
        areas=np.ones(2, np.float32),
    )
    false, misses = failures(sample, detections, classes, 0.5)
    person = next(wrong for wrong in false if wrong.score == pytest.approx(float(detections.scores[0])))
    assert (person.image, person.label, person.fault, person.other) == ("000001", "person", "other class", "dog")
    assert [miss.label for miss in misses] == ["dog", "train"]
    assert misses[1].part == pytest.approx(120 * 120 / 512**2)
    counts = summary(false, misses, shown=1)
    assert "`000001`: person" in counts["surest_false"][0]
    assert f"({misses[0].stage})" in counts["largest_missed"][0]
    assert sum(counts["missed"].values()) == 2


def test_a_miss_is_explained_at_the_threshold_that_it_was_missed_at(astronaut: np.ndarray) -> None:
    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")
    (detections,) = detector.detect([astronaut], DetectOptions(score_threshold=0.01, trace=True))
    sample = Sample(
        path=Path("000001.jpg"),
        image_id=1,
        width=512,
        height=512,
        boxes=detections.boxes[:1].numpy(),
        class_ids=detections.class_ids[:1].numpy().copy(),
        ignore=np.zeros(1, bool),
        areas=np.ones(1, np.float32),
    )
    score = float(detections.scores[0])
    assert failures(sample, detections, detector.info.classes, score - 0.01)[1] == []
    (miss,) = failures(sample, detections, detector.info.classes, score + 1e-4)[1]
    assert miss.stage == "score_threshold"


@pytest.mark.parametrize(
    ("fault", "words"),
    [("nothing", "nothing is labelled"), ("second", "second box on one cat"), ("misplaced", "too far off its cat")],
)
def test_each_fault_has_words(fault: str, words: str) -> None:
    assert words in FalseDetection("000002", "cat", 0.9, fault, "cat", 0.4).words()
