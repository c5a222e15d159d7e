import numpy as np

from benchmarks.quality import unknown
from model.detector import Detector


def test_the_unknown_images_are_the_same_for_the_same_seed() -> None:
    first, again = unknown.drawn(0, each=3), unknown.drawn(0, each=3)
    assert [image.kind for image in first[::3]] == list(unknown.KINDS)
    assert all(np.array_equal(a.pixels, b.pixels) and a.name == b.name for a, b in zip(first, again, strict=True))
    other = unknown.drawn(1, each=3)
    assert sum(not np.array_equal(a.pixels, b.pixels) for a, b in zip(first, other, strict=True)) >= 12


def test_more_unknown_images_change_none_of_those_before() -> None:
    few, many = unknown.drawn(0, each=1), unknown.drawn(0, each=2)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(few, many[::2], strict=True))


def test_unknown_images_are_images() -> None:
    for image in unknown.drawn(0, each=6) + unknown.photographs():
        assert image.pixels.dtype == np.uint8
        assert image.pixels.ndim == 3
        assert image.pixels.shape[2] == 3


def test_false_detections_are_counted_by_kind() -> None:
    detector = Detector.random("LITE", classes=("__background__", "thing"), device="cpu", precision="fp32")
    images = unknown.drawn(0, each=1)[:2]
    everything = unknown.measure(detector, images, threshold=0.0)
    assert everything["kinds"]["all"]["images"] == 2
    assert everything["kinds"]["all"]["detections"] == sum(
        everything["kinds"][k]["detections"] for k in ("blank", "gradient")
    )
    assert everything["kinds"]["all"]["share"] == 1.0
    assert len(everything["highest"]) == 10
    assert unknown.measure(detector, images, threshold=1.0)["kinds"]["all"]["share"] == 0.0
